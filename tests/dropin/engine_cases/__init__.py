"""What a `mooncake.engine` is expected to do, as functions that run in any interpreter that has one: here, and upstream's."""

from . import lifecycle, many, memory, peers, transfers

EVERY = (lifecycle, memory, transfers, many, peers)
