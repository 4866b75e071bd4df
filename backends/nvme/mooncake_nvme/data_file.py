"""The file that holds the objects' bytes, and where in it the next ones go."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from mooncake_core.store.checksums import Digest

CHUNK_BYTES: Final = 256 << 10
"""Is in the cache still when it is summed."""
PIECES_PER_WRITE: Final = 512


class DataFile:
    """Errors of the disk are OSErrors: nothing is mapped. Bytes move without the interpreter lock."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @property
    def num_bytes(self) -> int:
        return os.fstat(self._descriptor).st_size

    def write(self, offset: int, pieces: Sequence[memoryview]) -> None:
        """Writes pieces one after the other."""
        for first in range(0, len(pieces), PIECES_PER_WRITE):
            left = [piece for piece in pieces[first : first + PIECES_PER_WRITE] if piece.nbytes]
            while left:
                count = os.pwritev(self._descriptor, left, offset)
                offset += count
                while left and count >= left[0].nbytes:
                    count -= left.pop(0).nbytes
                if count:
                    left[0] = left[0][count:]

    def read(self, offset: int, target: memoryview, checksum: int) -> bool:
        """Fills the target; whether the bytes are there and have that checksum."""
        digest = Digest()
        while target:
            count = os.preadv(self._descriptor, [target[:CHUNK_BYTES]], offset)
            if count == 0:
                return False
            digest.update(target[:count])
            target = target[count:]
            offset += count
        return digest.intdigest() == checksum

    def sync(self) -> None:
        """What was written is on the disk."""
        os.fdatasync(self._descriptor)

    def truncate(self, num_bytes: int) -> None:
        os.ftruncate(self._descriptor, num_bytes)

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def places(head: int, lengths: Sequence[int], end: int) -> list[int]:
    """Where objects go that are written from `head` on; what does not fit before `end` goes to the beginning."""
    found = []
    for length in lengths:
        if head + length > end:
            head = 0
        found.append(head)
        head += length
    return found


def runs(offsets: Sequence[int], lengths: Sequence[int]) -> Iterator[range]:
    """The objects (by number) that lie one behind the other, and are written at once."""
    first = 0
    for number in range(1, len(offsets) + 1):
        if number == len(offsets) or offsets[number] != offsets[number - 1] + lengths[number - 1]:
            yield range(first, number)
            first = number
