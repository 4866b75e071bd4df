"""What a tier is. A plugin author reads this page, subclasses `Tier`, and runs the suite in
`mooncake_core.testing.tier_contract`.

A tier belongs to one node and holds whole objects. It is a cache: it may drop what it likes, when it says so, and it may
lose what is younger than the last `sync`; it never returns a wrong byte. Its methods block, and are called from worker
threads: `write`, `remove`, `sync` and `close` from one at a time; `read`, `holds`, `list_objects` and `usage` from several,
also beside a write.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from msgspec import Struct


class TierKey(NamedTuple):
    """One object of one put: a key that was removed and put again has another allocation id, which is a greater number."""

    key: str
    allocation_id: int


class TierObject(Struct, frozen=True, kw_only=True):
    """What a tier knows of an object, beside its bytes."""

    key: str
    allocation_id: int
    size_bytes: int
    checksum: int
    """xxh3-64 of its bytes."""
    parent: str = ""

    @property
    def name(self) -> TierKey:
        return TierKey(self.key, self.allocation_id)


class NewTierObject(NamedTuple):
    """An object to write. Its bytes may change while it is written: then the checksum tells at the first read."""

    about: TierObject
    data: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSettings:
    """What a node gives a tier when it makes it."""

    owner: str
    """Name of the node: what it keeps is apart from what other nodes keep at the same place."""
    path: str
    """Where: a folder, or whatever the tier calls a place."""
    capacity_bytes: int
    """Of all it writes, its own bookkeeping included."""
    reserve_bytes: int = 1 << 30
    """Space on the disk that it leaves to others."""
    retry_s: float = 30.0
    """How long it refuses writes after one has failed."""
    options: Mapping[str, Any] = field(default_factory=dict)
    now: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch."""

    stored: list[bool]
    """Of each object, in order: whether the tier holds it (also: held it before)."""
    dropped: list[TierKey]
    """What the tier holds no more: to make room, or because a newer object of the same key came."""


class Listing(NamedTuple):
    """Part of what is there."""

    objects: list[TierObject]
    cursor: str | None
    """Where the next part begins; None after the last one."""


class TierUsage(Struct, frozen=True, kw_only=True):
    """How full a tier is."""

    capacity_bytes: int
    used_bytes: int
    num_objects: int
    trouble: str = ""
    """Why it takes no writes, and what to do; empty while it does."""


class Tier(ABC):
    """A place for whole objects, of each key the newest one."""

    name: ClassVar[str]

    @abstractmethod
    def __init__(self, settings: TierSettings) -> None:
        """Opens it, and finds what was there before: after `close`, and after the process was killed at any moment.

        Raises:
            ConfigError: the settings make no sense, another process uses the place, or what lies there has a format this
                version cannot read; says what to do.
            PluginUnavailable: a library is missing; says what to install.
            OSError: the place does not work now. The node goes on without the tier.
        """

    @abstractmethod
    def write(self, objects: Sequence[NewTierObject]) -> Written:
        """Stores a batch; an object that cannot be stored is False, and no exception: a full or failing disk shows in
        `usage`. Of two objects of one key that with the greater allocation id stays. Makes room by dropping the oldest."""

    @abstractmethod
    def read(self, wanted: TierKey, target: memoryview) -> bool:
        """Copies an object into `target`, whose length is the object's; whether it is there, whole and right.

        After False the target may hold anything. What is damaged is dropped.
        """

    @abstractmethod
    def holds(self, name: TierKey) -> bool:
        """Whether an object is there, as far as can be told without reading it."""

    @abstractmethod
    def remove(self, names: Sequence[TierKey]) -> None:
        """Forgets these objects, where they are there with just this allocation id."""

    @abstractmethod
    def list_objects(self, cursor: str = "", limit: int = 1024) -> Listing:
        """At most `limit` objects from a cursor on. What comes or goes meanwhile may be missing; nothing comes twice."""

    @abstractmethod
    def usage(self) -> TierUsage:
        """How full it is, and whether it takes writes."""

    @abstractmethod
    def sync(self) -> None:
        """What was written before survives a power cut, as far as the place can promise that. Fails into `usage`, as a
        write does."""

    @abstractmethod
    def close(self) -> None:
        """Ends it, in good order. Idempotent."""
