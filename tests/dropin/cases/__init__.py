"""What a `mooncake.store` is expected to do, as functions that run in any interpreter that has one: here, and upstream's."""

from . import concurrency, lifecycle, parts, pointers, presence, values

EVERY = (values, presence, pointers, parts, lifecycle, concurrency)
