"""Scheduling policies. A policy is one class in one file; see contract.py."""

from mooncake_core.conductor.policies.kvcache_centric import KVCacheCentric
from mooncake_core.conductor.policies.least_loaded import LeastLoaded
from mooncake_core.conductor.policies.local_only import CacheAware, Random, RoundRobin, ShortestQueue

__all__ = ["KVCacheCentric", "LeastLoaded", "CacheAware", "ShortestQueue", "Random", "RoundRobin"]
