"""What goes to each node at once, or comes from it, in parts that several threads and connections can carry. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

SMALLEST_PART_BYTES: Final = 512 << 10
"""Less is not worth a thread: waking it takes as long."""

P = TypeVar("P")


class Division(Generic[P]):
    """Whoever divides keeps an object whole where its bytes must be written in order."""

    def __init__(self, make: Callable[[str], P], num_bytes: int = 0, width: Callable[[str], int] | None = None) -> None:
        """`make` makes an empty part of a node. Of `num_bytes` in all, a node's are divided into `width` parts; by default
        not at all."""
        self._make = make
        self.num_bytes = num_bytes
        self._width = width
        self._open: dict[str, P] = {}
        self._part_bytes: dict[str, int] = {}
        """Of nodes that have several parts."""
        self._room: dict[str, int] = {}
        """In what is open of them."""
        self.parts: list[P] = []

    def part(self, node: str) -> P:
        """The part that takes the next bytes of a node."""
        part = self._open.get(node)
        if part is None:
            part = self._begin(node)
            self._divide(node)
        elif self._room and self._room.get(node, 1) <= 0:
            part = self._begin(node)
            self._room[node] = self._part_bytes[node]
        return part

    def filled(self, node: str, num_bytes: int) -> None:
        """So many bytes were added to a node's part."""
        if node in self._room:
            self._room[node] -= num_bytes

    def room(self, node: str, num_bytes: int) -> int:
        """How many of the next bytes of a node its part is to take; the rest is for the next one. Few are not divided."""
        room = self._room.get(node, num_bytes)
        return room if num_bytes - room >= SMALLEST_PART_BYTES // 2 else num_bytes

    def _begin(self, node: str) -> P:
        part = self._open[node] = self._make(node)
        self.parts.append(part)
        return part

    def _divide(self, node: str) -> None:
        most = self.num_bytes // SMALLEST_PART_BYTES
        if self._width is not None and most > 1:
            width = min(self._width(node), most)
            if width > 1:
                self._part_bytes[node] = self._room[node] = -(-self.num_bytes // width)
