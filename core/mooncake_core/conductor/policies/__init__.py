"""Scheduling policies. A policy is one class in one file; see contract.py."""

from mooncake_core.conductor.policies.kvcache_centric import KVCacheCentric
from mooncake_core.conductor.policies.least_loaded import LeastLoaded

__all__ = ["KVCacheCentric", "LeastLoaded"]
