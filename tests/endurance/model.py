"""What must hold of a pool whose processes die: of each key the values that may be read, and where it is known to lie. Pure.

A value that was acknowledged must be read as long as a place lives where it was seen. What failed, or was under way while
somebody died, may have happened or not; the next certain answer tells. A value that is in none of these sets is a wrong byte,
or something removed that came back.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

WRITER_S = 4.0
"""A writer's deadline and the master's margin, and what a fence may take."""


class Value(NamedTuple):
    """Bytes that follow from a number."""

    number: int
    size_bytes: int

    def content(self) -> bytes:
        return random.Random(self.number).randbytes(self.size_bytes)


Possible = Value | None


@dataclass(slots=True)
class Key:
    """What may be found under a key. `dram` and `tiers`: nodes where it was seen, and which live since."""

    possible: set[Possible] = field(default_factory=lambda: {None})
    dram: set[str] = field(default_factory=set)
    tiers: set[str] = field(default_factory=set)
    away: set[Value] = field(default_factory=set)
    """What it was before, and tiers may still hold: it must not come back unless the master's memory of it died too."""
    ghosts: set[Value] = field(default_factory=set)
    """Puts that failed, or were abandoned: a master that dies before they are cleared leaves them to the next (decision 7)."""
    busy_until: float = 0.0
    """Till then a writer that was not heard of any more may hold the key."""
    hard_pinned: bool = False

    @property
    def must_be_there(self) -> bool:
        return None not in self.possible


class Model:
    """All keys. `lossy`: memory is so short that what is committed may be evicted."""

    def __init__(self, keys: Iterable[str], *, lossy: bool, tiered: bool) -> None:
        self.keys = {name: Key() for name in keys}
        self._lossy = lossy
        self._tiered = tiered
        self._next = 0

    def new_value(self, size_bytes: int) -> Value:
        self._next += 1
        return Value(self._next, size_bytes)

    # What clients are told

    def put(
        self,
        name: str,
        value: Value,
        code: str,
        nodes: Iterable[str],
        now: float,
        *,
        hard_pin: bool = False,
        upsert: bool = False,
    ) -> None:
        """A put has ended like this (`error`: it is not known how), and was committed on these nodes, which live."""
        key = self.keys[name]
        if not code:
            key.hard_pinned = hard_pin or (key.hard_pinned and upsert and key.must_be_there)
            self._replace(key, value)
            key.dram = set(nodes)
        elif code in ("object_exists", "object_busy"):
            is_free = key.possible == {None} and code == "object_exists" and key.busy_until < now
            assert not is_free, f"{name} can neither be put nor read"
        elif code not in ("no_space", "quota_exceeded"):
            key.possible.add(value)
            key.ghosts.add(value)
            if code == "error":
                key.busy_until = now + WRITER_S

    def abandoned(self, name: str, value: Value, now: float) -> None:
        """A writer has gone in the middle."""
        key = self.keys[name]
        key.ghosts.add(value)
        key.busy_until = now + WRITER_S

    def removed(self, name: str, code: str, *, certain: bool) -> None:
        """A removal has ended like this; certain where nothing was away."""
        key = self.keys[name]
        if not code or (code == "object_not_found" and certain):
            self._replace(key, None)
        elif code not in ("object_leased", "object_not_found"):
            key.possible.add(None)

    def found(self, name: str, content: bytes, *, narrow: bool) -> None:
        """A read has brought this; `narrow`: nobody else changes it."""
        key = self.keys[name]
        right = [value for value in key.possible if value is not None and value.size_bytes == len(content)]
        value = next((value for value in right if value.content() == content), None)
        assert value is not None, f"{name}: {len(content)} wrong bytes, none of {key.possible} {self.whose(content)}"
        if narrow:
            self._narrow(key, value)

    def may_be_missed(self, name: str) -> bool:
        """Whether it is right that it cannot be read."""
        key = self.keys[name]
        return not (key.must_be_there and key.dram)

    def look(self, name: str, size_bytes: int | None, dram: set[str], tiers: set[str]) -> list[str]:
        """The master, which knows all nodes that live, says where it lies, if anywhere; what is wrong with that."""
        key = self.keys[name]
        if size_bytes is None:
            if key.must_be_there and (key.dram or key.tiers):
                places = f"DRAM of {sorted(key.dram)} and tiers of {sorted(key.tiers)}"
                return [f"{name} is lost: {key.possible} was in {places}, which live"]
            key.possible = {None, *(key.possible if self._tiered else ())}
            key.dram, key.tiers = set(), set()
            return []
        fitting = [value for value in key.possible if value is not None and value.size_bytes == size_bytes]
        if not fitting:
            return [f"{name}: {size_bytes} bytes are there, which are none of {key.possible}"]
        if len(fitting) == 1:
            self._narrow(key, fitting[0])
        key.dram, key.tiers = dram, tiers
        return []

    def whose(self, content: bytes) -> str:
        """For messages: which value they are, if any."""
        owners = (Value(number, len(content)) for number in range(1, self._next + 1))
        owner = next((value for value in owners if value.content() == content), None)
        return "and nobody's" if owner is None else f"but those of value {owner.number}"

    # What happens to processes

    def node_died(self, node: str) -> None:
        """Its DRAM is gone, its tiers are away."""
        for key in self.keys.values():
            had = node in key.dram or node in key.tiers
            key.dram.discard(node)
            key.tiers.discard(node)
            if had and not (key.dram or key.tiers):
                key.possible.add(None)

    def master_died(self) -> None:
        """What it remembers of removals and pins dies with it: what tiers were not told yet may come back (decision 22)."""
        for key in self.keys.values():
            key.hard_pinned = False
            key.busy_until = 0.0
            key.possible |= key.ghosts
            if self._tiered:
                key.possible |= key.away
            if self._lossy:
                key.possible.add(None)

    def nothing_waits(self) -> None:
        """All that was given up is cleared."""
        for key in self.keys.values():
            key.ghosts = set()

    def shared(self, name: str) -> None:
        """Several are about to do things to a key at once."""
        key = self.keys[name]
        key.possible.add(None)
        key.dram, key.tiers = set(), set()
        key.hard_pinned = False
        key.busy_until = float("inf")

    def may_be(self, name: str, value: Value) -> None:
        """One of those puts this."""
        self.keys[name].possible.add(value)
        self.keys[name].ghosts.add(value)

    def shared_no_more(self, name: str, now: float) -> None:
        self.keys[name].busy_until = now + WRITER_S

    def _replace(self, key: Key, value: Possible) -> None:
        key.away |= {old for old in key.possible if old is not None}
        key.dram, key.tiers = set(), set()
        self._narrow(key, value)

    def _narrow(self, key: Key, value: Possible) -> None:
        """It is this; or was evicted, where that may be."""
        key.possible = {value, None} if self._lossy and not key.hard_pinned else {value}
