"""The contract of a tier as tests. A plugin's test file subclasses TierContract:

class TestMine(TierContract):
    tier = MyTier

    def damage(self, place: str, key: str) -> None: ...
    def failing(self, place: str) -> AbstractContextManager[None]: ...
"""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import xxhash

from mooncake_core.errors import ConfigError
from mooncake_core.store.tiers.contract import NewTierObject, Tier, TierKey, TierObject, TierSettings, TierUsage

OWNER = "node-1"
CAPACITY_BYTES = 16 << 20
RETRY_S = 30.0


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def content(key: str, allocation_id: int, size_bytes: int) -> bytes:
    """The bytes of an object, made from its name."""
    return random.Random(f"{key}/{allocation_id}").randbytes(size_bytes)


def new(key: str, allocation_id: int = 1, size_bytes: int = 5000, parent: str = "") -> NewTierObject:
    """An object to write."""
    data = content(key, allocation_id, size_bytes)
    about = TierObject(
        key=key,
        allocation_id=allocation_id,
        size_bytes=size_bytes,
        checksum=xxhash.xxh3_64_intdigest(data),
        parent=parent,
    )
    return NewTierObject(about, memoryview(data))


def reads(tier: Tier, item: NewTierObject) -> bool:
    """Whether an object is there; its bytes must be right then."""
    target = bytearray(item.about.size_bytes)
    found = tier.read(item.about.name, memoryview(target))
    assert not found or target == item.data, "wrong bytes"
    return found


def listed(tier: Tier, limit: int = 1024) -> list[TierObject]:
    """All that a tier lists, part by part."""
    found: list[TierObject] = []
    cursor: str | None = ""
    while cursor is not None:
        part = tier.list_objects(cursor, limit)
        assert len(part.objects) <= limit
        found += part.objects
        cursor = part.cursor
    return sorted(found, key=lambda about: about.name)


class TierContract(ABC):
    """Inherit, and name the tier."""

    tier: ClassVar[type[Tier]]
    options: ClassVar[dict[str, Any]] = {}
    num_writes: ClassVar[int] = 60
    """In the test of reads beside writes."""
    exclusive: ClassVar[bool] = True
    """Whether a second tier of the same owner at the same place is refused."""

    @abstractmethod
    def damage(self, place: str, key: str) -> None:
        """Changes a byte of an object's data where it is kept. The tier is closed."""

    @abstractmethod
    def failing(self, place: str) -> AbstractContextManager[None]:
        """While it lasts, writes fail as on a full disk."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> str:
        """Where the tier of a test keeps its objects; empty at the beginning."""
        return str(tmp_path / "tier")

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def opened(self, place: str, clock: Clock) -> Iterator[Tier]:
        tier = self.open(place, clock)
        yield tier
        tier.close()

    def open(self, place: str, clock: Clock | None = None, **settings: Any) -> Tier:
        return self.tier(
            TierSettings(
                owner=settings.pop("owner", OWNER),
                path=place,
                capacity_bytes=settings.pop("capacity_bytes", CAPACITY_BYTES),
                reserve_bytes=settings.pop("reserve_bytes", 0),
                retry_s=RETRY_S,
                options=self.options,
                now=clock or Clock(),
                **settings,
            )
        )

    def test_what_was_written_is_read_byte_for_byte(self, opened: Tier) -> None:
        sizes = (0, 1, 63, 4096, 100_001, 1 << 20)
        items = [new(f"k{size}", 7, size) for size in sizes] + [new("x" * 1024, 8, 77, parent="ü" * 300)]
        assert opened.write(items).stored == [True] * len(items)
        assert [reads(opened, item) for item in items] == [True] * len(items)
        assert listed(opened) == sorted((item.about for item in items), key=lambda about: about.name)

    def test_what_is_not_there_just_so_is_a_miss(self, opened: Tier) -> None:
        item = new("k", 5)
        opened.write([item])
        assert not opened.read(TierKey("other", 5), memoryview(bytearray(5000)))
        assert not opened.read(TierKey("k", 4), memoryview(bytearray(5000)))
        assert not opened.read(TierKey("k", 6), memoryview(bytearray(5000)))
        assert not opened.read(TierKey("k", 5), memoryview(bytearray(4999)))
        held = [opened.holds(TierKey(*name)) for name in (("k", 5), ("k", 4), ("k", 6), ("other", 5))]
        assert held == [True, False, False, False]
        assert reads(opened, item)

    def test_the_newest_object_of_a_key_stays(self, opened: Tier) -> None:
        first, second = new("k", 5, 100), new("k", 9, 200)
        assert opened.write([first]).stored == [True]
        written = opened.write([second])
        assert (written.stored, written.dropped) == ([True], [TierKey("k", 5)])
        late = opened.write([first])
        assert (late.stored, late.dropped) == ([False], [])
        again = opened.write([second])
        assert (again.stored, again.dropped) == ([True], [])
        assert (reads(opened, first), reads(opened, second)) == (False, True)
        assert [about.name for about in listed(opened)] == [TierKey("k", 9)]

    def test_what_was_removed_is_gone_and_a_newer_object_stays(self, opened: Tier) -> None:
        gone, kept = new("gone", 1), new("kept", 2)
        opened.write([gone, kept])
        opened.remove([gone.about.name, TierKey("kept", 1), TierKey("unknown", 1)])
        assert (reads(opened, gone), reads(opened, kept)) == (False, True)
        opened.remove([kept.about.name])
        assert listed(opened) == []
        usage = opened.usage()
        assert (usage.num_objects, usage.used_bytes) == (0, 0)

    def test_the_list_comes_in_parts_and_nothing_comes_twice(self, opened: Tier) -> None:
        items = [new(f"k{number}", number, 10) for number in range(1, 24)]
        opened.write(items)
        names = [item.about.name for item in items]
        assert [about.name for about in listed(opened, limit=5)] == sorted(names)
        first = opened.list_objects("", 5)
        assert first.cursor is not None
        opened.remove([about.name for about in first.objects])
        rest = opened.list_objects(first.cursor, 100)
        assert rest.cursor is None
        assert {about.name for about in (*first.objects, *rest.objects)} == set(names)

    def test_everything_is_there_when_it_is_opened_again(self, place: str) -> None:
        tier = self.open(place)
        items = [new(f"k{number}", 3, 3000 + number, parent="p") for number in range(20)]
        tier.write(items)
        tier.remove([items[0].about.name])
        tier.sync()
        before = tier.usage()
        tier.close()
        tier.close()
        tier = self.open(place)
        assert tier.usage() == before
        assert [reads(tier, item) for item in items] == [False] + [True] * 19
        assert listed(tier) == sorted((item.about for item in items[1:]), key=lambda about: about.name)
        tier.close()

    def test_it_stays_within_its_capacity_drops_the_oldest_and_says_so(self, opened: Tier) -> None:
        size = CAPACITY_BYTES // 40
        there: list[TierKey] = []
        items = [new(f"k{number}", number, size) for number in range(120)]
        for item in items:
            written = opened.write([item])
            assert written.stored == [True]
            there.append(item.about.name)
            assert written.dropped == there[: len(written.dropped)], "not the oldest"
            del there[: len(written.dropped)]
            usage = opened.usage()
            assert usage.used_bytes <= usage.capacity_bytes == CAPACITY_BYTES
        assert sorted(there) == [about.name for about in listed(opened)]
        assert len(there) >= 20, "half of the capacity is not used"
        assert [reads(opened, item) for item in items[-len(there) :]] == [True] * len(there)

    def test_an_object_too_large_for_it_is_not_stored(self, opened: Tier) -> None:
        written = opened.write([new("big", 1, CAPACITY_BYTES + 1), new("small", 1, 10)])
        assert written.stored == [False, True]
        assert reads(opened, new("small", 1, 10))

    def test_a_damaged_object_is_a_miss_and_dropped(self, place: str) -> None:
        tier = self.open(place)
        bad, good = new("bad", 1, 50_000), new("good", 2, 50_000)
        tier.write([bad, good])
        tier.close()
        self.damage(place, "bad")
        tier = self.open(place)
        assert (reads(tier, bad), reads(tier, good)) == (False, True)
        assert [about.name for about in listed(tier)] == [good.about.name]
        assert tier.write([bad]).stored == [True]
        assert reads(tier, bad)
        tier.close()

    def test_a_full_disk_costs_writes_and_a_clear_message_for_a_while(
        self, place: str, clock: Clock, opened: Tier
    ) -> None:
        before, during, after = new("before"), new("during", size_bytes=1 << 20), new("after")
        opened.write([before])
        with self.failing(place):
            assert opened.write([during]).stored == [False]
            assert "lower the tier's capacity" in opened.usage().trouble
            assert reads(opened, before)
        assert opened.write([after]).stored == [False], "it has not waited"
        clock.now_s += RETRY_S + 1
        assert opened.write([after, during]).stored == [True, True]
        assert opened.usage().trouble == ""
        assert (reads(opened, before), reads(opened, after), reads(opened, during)) == (True, True, True)

    def test_a_place_belongs_to_one_node(self, place: str, opened: Tier) -> None:
        other = self.open(place, owner="node-2")
        opened.write([new("k")])
        assert not reads(other, new("k"))
        other.close()
        if self.exclusive:
            with pytest.raises(ConfigError, match="another path"):
                self.open(place)
            opened.close()
            self.open(place).close()

    def test_reading_goes_on_beside_writing(self, opened: Tier) -> None:
        kept = new("kept", 1, 300_000)
        opened.write([kept])
        stop = threading.Event()
        results: list[bool] = []

        def read() -> None:
            while not stop.is_set():
                results.append(reads(opened, kept))
                opened.list_objects("", 10)
                assert isinstance(opened.usage(), TierUsage)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for number in range(self.num_writes):
            opened.write([new(f"k{number % 7}", number + 1, 20_000)])
            opened.remove([TierKey(f"k{number % 5}", number)])
        while len(results) < 4:
            opened.sync()
        stop.set()
        for reader in readers:
            reader.join()
        assert all(results)
