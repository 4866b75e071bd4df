"""Which objects a node gives up first: the contract of an eviction policy. Pure; a policy is one class (entry point
`mooncake.evictions`), made once per node.

The policy ranks, the pool decides: what a policy names may be under lease or pinned, or its chain may go on. Then the pool
keeps it in mind and evicts it as soon as it may (eviction_order.py), so no policy needs to look twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod


class Eviction(ABC):
    """Ranks the objects of one node. Calls take O(log n) at most, over many of them."""

    @abstractmethod
    def added(self, key: str, *, size_bytes: int, position: int) -> None:
        """The node has a new object. `position`: how many objects of its chain come before it."""

    @abstractmethod
    def touched(self, key: str) -> None:
        """An object of the node was read. One that was named is ranked anew, and may be named again."""

    @abstractmethod
    def removed(self, key: str) -> None:
        """An object of the node is gone: evicted if it was named, else removed."""

    @abstractmethod
    def name_next(self) -> str | None:
        """Names the object that is to go first, and none twice, unless it was touched in between. None: all are named."""
