"""Where an object's replicas lie: a small mapping, of which there are as many as objects. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from mooncake_core.store.node_space import Extent


class Replicas(Struct, gc=False):
    """Node → extent, in the order in which they came. Most objects have one: a dict for each would be the largest part of what
    the master remembers of it."""

    _node: str = ""
    _extent: Extent | None = None
    _others: dict[str, Extent] | None = None

    def __len__(self) -> int:
        return (self._extent is not None) + (len(self._others) if self._others else 0)

    def __bool__(self) -> bool:
        return self._extent is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes())

    def __contains__(self, node: str) -> bool:
        return bool(node) and (node == self._node or (self._others is not None and node in self._others))

    def __getitem__(self, node: str) -> Extent:
        if self._extent is not None and node == self._node:
            return self._extent
        return (self._others or {})[node]

    def get(self, node: str) -> Extent | None:
        """None where there is none on that node."""
        if node == self._node:
            return self._extent
        return (self._others or {}).get(node)

    def __setitem__(self, node: str, extent: Extent) -> None:
        if self._extent is None or node == self._node:
            self._node, self._extent = node, extent
        else:
            self._others = {**(self._others or {}), node: extent}

    def items(self) -> Sequence[tuple[str, Extent]]:
        """As they are now: what is dropped meanwhile does not matter."""
        if self._extent is None:
            return ()
        first = (self._node, self._extent)
        return (first, *self._others.items()) if self._others else (first,)

    def values(self) -> list[Extent]:
        return [extent for _, extent in self.items()]

    @property
    def num_bytes(self) -> int:
        """Of all of them."""
        if self._extent is None:
            return 0
        others = sum(extent.length for extent in self._others.values()) if self._others else 0
        return self._extent.length + others

    def pop(self, node: str) -> Extent:
        """Takes a replica out.

        Raises:
            KeyError: there is none on that node.
        """
        extent = self[node]
        left = [(name, other) for name, other in self.items() if name != node]
        self._node, self._extent = left[0] if left else ("", None)
        self._others = dict(left[1:]) or None
        return extent

    def _nodes(self) -> Sequence[str]:
        if self._extent is None:
            return ()
        return (self._node, *self._others) if self._others else (self._node,)
