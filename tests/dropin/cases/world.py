"""What a case has to work with. Only the standard library and `mooncake.store`: upstream's interpreter has no more."""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MIB = 1 << 20
BEFORE_SETUP = "calls before `setup` and after `close`"
SEGMENT_BYTES = 192 * MIB
TOO_LARGE = 256 * MIB
BUFFER_BYTES = 384 * MIB


@dataclass(frozen=True)
class Case:
    """One call of one function."""

    name: str
    run: Callable[..., None]
    row: tuple[Any, ...]
    differs: str
    """Why upstream answers otherwise; a line of docs/guide/dropin.md."""


CASES: dict[str, Case] = {}


def case(*rows: Any, differs: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function, once for each row of arguments. Its first argument is the World."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        for number, row in enumerate(rows or [()]):
            arguments = row if isinstance(row, tuple) else (row,)
            suffix = f"-{number}-{_label(arguments[0])}" if arguments else ""
            name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}{suffix}"
            assert name not in CASES, name
            CASES[name] = Case(name, function, arguments, differs)
        return function

    return register


def _label(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return "".join(letter if letter.isalnum() else "_" for letter in text)[:24]


class Memory:
    """Memory with an address, of a pattern that shows what was written to it."""

    def __init__(self, num_bytes: int, content: bytes = b"") -> None:
        self._array = (ctypes.c_char * max(1, num_bytes))()
        self.address = ctypes.addressof(self._array)
        self.size = num_bytes
        if num_bytes < TOO_LARGE:
            self.fill(content or b"\xa5" * num_bytes)

    def fill(self, content: bytes) -> None:
        ctypes.memmove(self.address, content, len(content))

    @property
    def content(self) -> bytes:
        return self._array.raw[: self.size]


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


def pattern(num_bytes: int, seed: int = 0) -> bytes:
    """Bytes of which no two places near each other look alike."""
    block = bytes((index * 31 + seed * 17 + (index >> 8) * 7) & 0xFF for index in range(min(num_bytes, 65_536)))
    return (block * (num_bytes // max(1, len(block)) + 1))[:num_bytes]


def raises(kind: type[BaseException] | tuple[type[BaseException], ...], work: Callable[[], Any]) -> str:
    """The text of the error that work raises."""
    try:
        answer = work()
    except kind as error:
        return str(error)
    raise AssertionError(f"expected {kind}, got the answer {answer!r}")


def in_threads(count: int, work: Callable[[int], Any]) -> Sequence[Any]:
    """The answers of work(0) to work(count - 1), all run at once."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))
