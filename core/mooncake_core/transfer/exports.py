"""What a process lets its peers touch: keys, ranges, and a withdrawal that is final.

Shared by transports whose far end checks each access in software.
"""

from __future__ import annotations

import secrets
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final

from mooncake_core.errors import OutOfRange, StaleSegment
from mooncake_core.transfer.contract import Range
from mooncake_core.transfer.device_memory import device_of

KEY_BYTES: Final = 16
WITHDRAW_PATIENCE_S: Final = 2.0


def check_ranges(ranges: Sequence[Range] | None, num_bytes: int) -> None:
    """Raises OutOfRange for a range that does not lie in a region of so many bytes."""
    for allowed in ranges or ():
        if allowed.offset < 0 or allowed.length < 0 or allowed.offset + allowed.length > num_bytes:
            raise OutOfRange(f"{allowed} does not lie in a region of {num_bytes} bytes")


def merged(ranges: Sequence[Range]) -> list[Range]:
    """The same bytes in ascending order and as few ranges as possible."""
    found: list[Range] = []
    for allowed in sorted(ranges, key=lambda part: part.offset):
        if found and allowed.offset <= found[-1].offset + found[-1].length:
            before = found.pop()
            end = max(before.offset + before.length, allowed.offset + allowed.length)
            allowed = Range(before.offset, end - before.offset)
        found.append(allowed)
    return found


def first_outside(ranges: Sequence[Range], starts: Sequence[int], ends: Sequence[int]) -> Range | None:
    """The first of some ranges that lies in none of the allowed ones, which are merged, and in order."""
    if len(starts) == 1:  # most exports are of a whole region
        start, end = starts[0], ends[0]
        for part in ranges:
            if part.offset < start or part.offset + part.length > end:
                return part
        return None
    for part in ranges:
        index = bisect_right(starts, part.offset) - 1
        if index < 0 or part.offset + part.length > ends[index]:
            return part
    return None


class Export:
    """One export of one region."""

    def __init__(self, memory: memoryview, *, writable: bool, ranges: Sequence[Range] | None) -> None:
        self.key = secrets.token_bytes(KEY_BYTES)
        self.memory = memory
        self.device = device_of(memory)
        """Whose memory it is; None for the host's."""
        self.writable = writable
        ordered = merged(ranges or [Range(0, memory.nbytes)])
        self._starts = [allowed.offset for allowed in ordered]
        self._ends = [allowed.offset + allowed.length for allowed in ordered]
        self.accesses: set[Access] = set()

    def first_outside(self, ranges: Sequence[Range]) -> Range | None:
        """The first of some ranges that no exported one covers."""
        return first_outside(ranges, self._starts, self._ends)


class Access:
    """Somebody touches exported memory now."""

    __slots__ = ("export", "interrupt", "memories")

    def __init__(self, export: Export, memories: list[memoryview], interrupt: Callable[[], None]) -> None:
        self.export = export
        self.memories = memories
        """One per range asked for, in order."""
        self.interrupt = interrupt


class Exports:
    """The exports of one process, by key. Used by many threads."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, Export] = {}
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._withdrawing = 0

    def add(self, memory: memoryview, *, writable: bool, ranges: Sequence[Range] | None) -> bytes:
        """Makes memory reachable; returns the key."""
        check_ranges(ranges, memory.nbytes)
        export = Export(memory, writable=writable, ranges=ranges)
        with self._lock:
            self._by_key[export.key] = export
        return export.key

    def enter(self, key: bytes, ranges: Sequence[Range], *, write: bool, interrupt: Callable[[], None]) -> Access:
        """Begins an access; `leave` must follow. `interrupt` breaks it off from another thread.

        Raises:
            StaleSegment: no such key, or withdrawn.
            OutOfRange: outside of the exported ranges, or a write to what is read-only.
        """
        with self._lock:
            export = self._by_key.get(key)
            if export is None:
                raise StaleSegment("the segment was withdrawn, or its process was started anew")
            part = export.first_outside(ranges)
            if part is not None:
                raise OutOfRange(f"bytes {part.offset} to {part.offset + part.length} are not exported")
            if write and not export.writable:
                raise OutOfRange("the segment is exported for reading only")
            memories = [export.memory[part.offset : part.offset + part.length] for part in ranges]
            access = Access(export, memories, interrupt)
            export.accesses.add(access)
            return access

    def leave(self, access: Access) -> None:
        """Ends an access."""
        with self._lock:
            access.export.accesses.discard(access)
            if self._withdrawing:
                self._changed.notify_all()

    def withdraw(self, key: bytes) -> None:
        """Removes an export; returns when nobody touches its memory any more. Who is too slow is interrupted."""
        with self._lock:
            export = self._by_key.pop(key, None)
            if export is None:
                return
            self._withdrawing += 1
            if not self._changed.wait_for(lambda: not export.accesses, WITHDRAW_PATIENCE_S):
                for access in export.accesses:
                    access.interrupt()
                self._changed.wait_for(lambda: not export.accesses)
            self._withdrawing -= 1

    def withdraw_all(self, memory: memoryview | None = None) -> None:
        """Removes the exports of one region, or all."""
        with self._lock:
            keys = [key for key, export in self._by_key.items() if memory is None or export.memory is memory]
        for key in keys:
            self.withdraw(key)
