"""What a case has to work with. Only the standard library and `mooncake.store`: upstream's interpreter has no more."""

from __future__ import annotations

import itertools
import os
from typing import Any

from tests.dropin.casework import MIB, TOO_LARGE, Case, Memory, in_threads, pattern, raises, registering

BEFORE_SETUP = "calls before `setup` and after `close`"
NO_SUCH_NUMBER = "sizes below 0 and from 2^64 on, keys with half a surrogate pair"
SEGMENT_BYTES = 192 * MIB
BUFFER_BYTES = 384 * MIB
CASES: dict[str, Case] = {}
case = registering(CASES)
__all__ = [
    "BEFORE_SETUP",
    "CASES",
    "MIB",
    "NO_SUCH_NUMBER",
    "TOO_LARGE",
    "Memory",
    "World",
    "case",
    "in_threads",
    "pattern",
    "raises",
]


class World:
    """A pool with one segment, the store that contributes it, and one that only reads."""

    def __init__(self, master: str, *, upstream: bool) -> None:
        from mooncake.store import MooncakeDistributedStore, ReplicateConfig

        self.master = master
        self.upstream = upstream
        self.Store = MooncakeDistributedStore
        self.Config = ReplicateConfig
        self._numbers = itertools.count()
        self._kept: list[Memory] = []
        self.store = self.connect(SEGMENT_BYTES)
        self.reader = self.connect(0)

    def connect(self, segment_bytes: int = 0) -> Any:
        store = self.Store()
        code = store.setup("127.0.0.1", "P2PHANDSHAKE", segment_bytes, BUFFER_BYTES, "tcp", "", self.master)
        assert code == 0, f"setup answered {code}"
        return store

    def here(self, ours: Any, theirs: Any) -> Any:
        """What is expected where the two differ."""
        return theirs if self.upstream else ours

    def key(self) -> str:
        return f"case-{os.getpid()}-{next(self._numbers)}"

    def keys(self, count: int) -> list[str]:
        return [self.key() for _ in range(count)]

    def put(self, value: bytes = b"some bytes") -> str:
        """A new object's key."""
        key = self.key()
        assert self.store.put(key, value) == 0
        return key

    def memory(self, num_bytes: int, content: bytes = b"", store: Any = None) -> Memory:
        """Memory that a store may use, the contributing one by default."""
        memory = Memory(num_bytes, content)
        self._kept.append(memory)
        assert (store or self.store).register_buffer(memory.address, max(1, num_bytes)) == 0
        return memory

    def empty(self) -> None:
        """Removes everything, and forgets the memory."""
        self.store.remove_all(force=True)
        for memory in self._kept:
            self.store.unregister_buffer(memory.address)
            self.reader.unregister_buffer(memory.address)
        self._kept.clear()

    def close(self) -> None:
        self.reader.close()
        self.store.close()
