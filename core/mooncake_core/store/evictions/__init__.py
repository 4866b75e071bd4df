"""The eviction policies that come with the project, one file each."""

from mooncake_core.store.evictions.length_aware import LengthAware
from mooncake_core.store.evictions.lfu import LFU
from mooncake_core.store.evictions.lru import LRU
from mooncake_core.store.evictions.s3_fifo import S3FIFO
from mooncake_core.store.evictions.sieve import Sieve

__all__ = ["LRU", "LFU", "LengthAware", "S3FIFO", "Sieve"]
