"""What goes to each node at once, or comes from it, in parts that several threads and connections can carry. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

SMALLEST_PART_BYTES: Final = 1 << 20
"""Less is not worth a thread: waking it takes as long."""

P = TypeVar("P")


class Division(Generic[P]):
    """Objects stay whole: what must be written, or read, in order is of one object, and so in one part."""

    def __init__(self, make: Callable[[str], P], num_bytes: int = 0, width: Callable[[str], int] | None = None) -> None:
        """`make` makes an empty part of a node. Of `num_bytes` in all, a node's are divided into `width` parts; by default
        not at all."""
        self._make = make
        self._num_bytes = num_bytes
        self._width = width
        self._open: dict[str, P] = {}
        self._part_bytes: dict[str, int] = {}
        """Of nodes that have several parts."""
        self._room: dict[str, int] = {}
        """In what is open of them."""
        self.parts: list[P] = []

    def part(self, node: str, num_bytes: int) -> P:
        """The part that takes the next object of a node."""
        part = self._open.get(node)
        if part is None:
            part = self._begin(node)
            self._divide(node)
        if self._part_bytes and node in self._part_bytes:
            if self._room[node] <= 0:
                part = self._begin(node)
                self._room[node] = self._part_bytes[node]
            self._room[node] -= num_bytes
        return part

    def _begin(self, node: str) -> P:
        part = self._open[node] = self._make(node)
        self.parts.append(part)
        return part

    def _divide(self, node: str) -> None:
        most = self._num_bytes // SMALLEST_PART_BYTES
        if self._width is not None and most > 1:
            width = min(self._width(node), most)
            if width > 1:
                self._part_bytes[node] = self._room[node] = -(-self._num_bytes // width)
