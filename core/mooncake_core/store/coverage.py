"""Which bytes of an object have been written. Pure."""

from __future__ import annotations


class Coverage:
    """All bytes up to a point, and islands after it."""

    __slots__ = ("_islands", "in_order", "reached")

    def __init__(self) -> None:
        self.reached = 0
        """All bytes before this one are covered."""
        self.in_order = True
        """Each write began where the one before had ended."""
        self._islands: list[tuple[int, int]] = []

    def add(self, start: int, end: int) -> None:
        """Bytes from `start` to before `end` are covered."""
        if self.in_order and start == self.reached:
            self.reached = end
            return
        self.in_order = False
        islands: list[tuple[int, int]] = []
        for low, high in sorted([*self._islands, (start, end)]):
            if low <= self.reached:
                self.reached = max(self.reached, high)
            else:
                islands.append((low, high))
        self._islands = islands
