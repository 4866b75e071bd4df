"""Nodes with tiers, a master and a client over real sockets: what is put comes back byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from mooncake_core.config.schema import TierConfig
from mooncake_core.errors import ConfigError, StaleAllocation
from mooncake_core.store import events as p
from mooncake_core.store.tiered_node import TieredNode
from mooncake_core.store.tiers.contract import NewTierObject, Tier, TierKey, TierSettings, Written
from mooncake_core.store.tiers.stack import TierStack, open_tiers
from mooncake_core.testing.memory_tier import MemoryTier
from mooncake_core.wire.messages.pool import Fence
from mooncake_core.wire.messages.tiering import Demote, Promote, Promotion, SlotName
from mooncake_core.wire.server import Call, Server
from mooncake_nvme import LmdbTier
from tests.store.world import ANY, World

SIZE = 50_000
ATTEMPTS = 3
"""Of a read: on a busy machine one may take longer than the short lease."""
DRAM_BYTES = 1 << 20
CALL = Call("master", 1e12)


@pytest.fixture(autouse=True)
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read stays in DRAM for its lease: these tests read more than that in little time."""
    monkeypatch.setattr("mooncake_core.store.pool.MARGIN_S", 0.02)


class TieredWorld(World):
    """Its nodes have tiers."""

    async def add_tiered(self, name: str, tiers: TierStack) -> TieredNode:
        incarnation = next(self.incarnations)
        engine = self.make_engine(name, incarnation)
        node = TieredNode(
            name,
            capacity_bytes=DRAM_BYTES,
            object_size_bytes=1024,
            incarnation=incarnation,
            engine=engine,
            tiers=tiers,
        )
        server = Server(name, node.handlers())
        self.addresses[name] = (await server.start(ANY)).url
        self.nodes[name] = (node, server, engine)
        await self.join(name)
        return node

    async def restart_node(self, name: str, tiers: Callable[[], TierStack]) -> TieredNode:
        self.driver.feed(p.NodeLeft(name, self.nodes[name][0].offer().read.incarnation))
        await self.kill_node(name)
        return await self.add_tiered(name, tiers())

    async def fill(self, count: int, prefix: str = "k") -> dict[str, bytes]:
        """Puts objects one after the other; a put that finds no room is tried again."""
        values: dict[str, bytes] = {}
        for number in range(count):
            key = f"{prefix}{number}"
            codes, (value,) = await self.put(key, size=SIZE)
            while codes == ["no_space"]:
                await asyncio.sleep(0.005)
                codes, (value,) = await self.put(key, size=SIZE)
            assert codes == [""]
            values[key] = value
        return values

    async def read(self, values: dict[str, bytes]) -> int:
        """Reads all, one after the other; how many are there. What is there must be right."""
        count = 0
        for key, value in values.items():
            found = False
            for _ in range(ATTEMPTS):
                (found,), (got,) = await self.get(key, size=SIZE)
                assert not found or got == value, f"wrong bytes in {key}"
                if found:
                    break
            count += found
        return count


@asynccontextmanager
async def tiered_world() -> AsyncIterator[TieredWorld]:
    made = TieredWorld(("tcp",), read_lease_s=0.3, writer_deadline_s=5, checksum="on", quotas={})
    await made.start_master(1)
    try:
        yield made
    finally:
        await made.close()


def stack(tier: type[Tier], path: Path, capacity_bytes: int = 32 << 20) -> TierStack:
    settings = TierSettings(owner="a", path=str(path), capacity_bytes=capacity_bytes, reserve_bytes=0, retry_s=0)
    return TierStack([tier(settings)], sync_interval_s=0.01)


@pytest.mark.parametrize("tier", [MemoryTier, LmdbTier])
async def test_four_times_dram_is_written_and_read_back(tier: type[Tier], tmp_path: Path) -> None:
    async with tiered_world() as world:
        await world.add_tiered("a", stack(tier, tmp_path))
        values = await world.fill(4 * DRAM_BYTES // SIZE)
        assert await world.read(values) == len(values)
        report = world.pool.report(0)
        assert report.hits_by_tier[tier.name] > len(values) // 2
        assert world.pool.check() == []


@pytest.mark.parametrize("tier", [MemoryTier, LmdbTier])
async def test_a_node_that_is_started_again_brings_its_objects_back(tier: type[Tier], tmp_path: Path) -> None:
    async with tiered_world() as world:
        await world.add_tiered("a", stack(tier, tmp_path))
        values = await world.fill(60)
        await world.restart_node("a", lambda: stack(tier, tmp_path))
        fills = world.pool.report(0).tiers["a"]
        while not fills:
            await asyncio.sleep(0.002)
            fills = world.pool.report(0).tiers["a"]
        assert fills[0].num_objects >= 40
        assert await world.read(values) == fills[0].num_objects
        assert world.pool.check() == []


class Cached(MemoryTier):
    """What was written lies in a cache until it is synced, as with a disk."""

    unsynced: ClassVar[set[str]] = set()

    def write(self, objects: Sequence[NewTierObject]) -> Written:
        self.unsynced |= {item.about.name.key for item in objects}
        return super().write(objects)

    def sync(self) -> None:
        self.unsynced.clear()


async def test_what_goes_to_a_tier_is_safe_from_a_power_cut_soon_after(tmp_path: Path) -> None:
    async with tiered_world() as world:
        await world.add_tiered("a", stack(Cached, tmp_path))
        for prefix in ("early", "late"):
            await world.fill(30, prefix)
            assert Cached.disks[str(tmp_path), "a"].objects
            async with asyncio.timeout(10):
                while Cached.unsynced:
                    await asyncio.sleep(0.01)


async def test_a_master_that_is_started_again_learns_what_tiers_hold(tmp_path: Path) -> None:
    async with tiered_world() as world:
        await world.add_tiered("a", stack(MemoryTier, tmp_path))
        values = await world.fill(60)
        await world.stop_master()
        await world.start_master(2)
        await world.join("a")
        while not world.pool.report(0).tiers["a"]:
            await asyncio.sleep(0.002)
        assert await world.read(values) == len(values)


async def test_a_failing_disk_costs_what_dram_has_no_room_for_and_says_so(tmp_path: Path) -> None:
    async with tiered_world() as world:
        await world.add_tiered("a", stack(MemoryTier, tmp_path))
        before = await world.fill(40)
        disk = MemoryTier.disks[str(tmp_path), "a"]
        disk.failing = True
        after = await world.fill(40, prefix="after")
        assert "lower the tier's capacity" in world.pool.report(0).tiers["a"][0].trouble
        in_tier = {key: value for key, value in before.items() if key in disk.objects}
        assert len(in_tier) > 15
        assert 0 < await world.read(after) < len(after)
        assert await world.read(in_tier) == len(in_tier)
        disk.failing = False
        more = await world.fill(40, prefix="more")
        assert await world.read(more) == len(more)
        assert world.pool.report(0).tiers["a"][0].trouble == ""


async def test_bytes_damaged_on_the_disk_are_a_miss(tmp_path: Path) -> None:
    async with tiered_world() as world:
        await world.add_tiered("a", stack(MemoryTier, tmp_path))
        values = await world.fill(60)
        disk = MemoryTier.disks[str(tmp_path), "a"]
        assert "k0" in disk.objects
        disk.objects["k0"].data[1000] ^= 1
        assert await world.read({"k0": values["k0"]}) == 0
        assert await world.store.exists(["k0"], timeout_s=5) == [False]
        assert await world.read({"k1": values["k1"]}) == 1


async def test_prefetch_brings_objects_to_dram(tmp_path: Path) -> None:
    async with tiered_world() as world:
        await world.add_tiered("a", stack(MemoryTier, tmp_path))
        values = await world.fill(60)
        assert await world.store.prefetch(["k0", "k1", "nothing"], timeout_s=5) == 2
        while not all(world.pool.report(0, prefix=key, limit=1).entries[0].nodes for key in ("k0", "k1")):
            await asyncio.sleep(0.002)
        MemoryTier.disks[str(tmp_path), "a"].objects.clear()
        assert await world.read({key: values[key] for key in ("k0", "k1")}) == 2


async def test_a_node_takes_orders_of_its_master_and_its_own_incarnation_only(tmp_path: Path) -> None:
    async with tiered_world() as world:
        node = await world.add_tiered("a", stack(MemoryTier, tmp_path))
        await world.fill(1)
        number, slot = world.slot_of("a")
        wrong = Demote(term=1, incarnation=77, slots=[SlotName(slot=number, allocation_id=slot.allocation_id)])
        with pytest.raises(StaleAllocation, match="of incarnation"):
            await node.demote(wrong, CALL)
        with pytest.raises(StaleAllocation, match="term"):
            await node.demote(Demote(term=0, incarnation=1, slots=[]), CALL)
        other = [
            SlotName(slot=number, allocation_id=slot.allocation_id + 1),
            SlotName(slot=number + 1, allocation_id=5),
        ]
        demoted = await node.demote(Demote(term=1, incarnation=1, slots=other), CALL)
        assert demoted.stored == []


async def test_a_new_master_waits_for_what_the_node_itself_writes(tmp_path: Path) -> None:
    class SlowTier(MemoryTier):
        def read(self, wanted: TierKey, target: memoryview) -> bool:
            asyncio.run_coroutine_threadsafe(going.wait(), loop).result(10)
            return super().read(wanted, target)

    loop, going = asyncio.get_running_loop(), asyncio.Event()
    async with tiered_world() as world:
        node = await world.add_tiered("a", stack(SlowTier, tmp_path))
        offer = node.offer()
        space = Promotion(key="k", allocation_id=9, size_bytes=5, checksum=0, slot=0, offset=offer.data_offset)
        promoting = asyncio.create_task(node.promote(Promote(term=1, incarnation=1, objects=[space]), CALL))
        await asyncio.sleep(0)
        fencing = [asyncio.create_task(node.fence(Fence(term=2, round=1), CALL)) for _ in range(2)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(task.done() for task in fencing)
        with pytest.raises(StaleAllocation):
            await node.promote(Promote(term=1, incarnation=1, objects=[space]), CALL)
        going.set()
        await asyncio.gather(*fencing)
        assert promoting.done()


def test_a_stack_reads_what_any_of_its_tiers_holds(tmp_path: Path) -> None:
    from mooncake_core.testing.tier_contract import listed, new, reads

    first = MemoryTier(TierSettings(owner="a", path=f"{tmp_path}/1", capacity_bytes=12_000))
    second = MemoryTier(TierSettings(owner="a", path=f"{tmp_path}/2", capacity_bytes=1 << 20))
    both = TierStack([first, second])
    items = [new(f"k{number}", number + 1) for number in range(5)]
    written = [both.write([item]) for item in items]
    assert all(result.stored == [True] for result in written)
    assert not any(result.dropped for result in written), "the second one has it"
    assert not reads(first, items[0])
    target = bytearray(5000)
    assert both.read(items[0].about.name, memoryview(target)) == "memory"
    assert target == items[0].data
    names, cursor = [], ""
    while True:
        part = both.list_objects(cursor, 2)
        names += [about.key for about in part.objects]
        if part.cursor is None:
            break
        cursor = part.cursor
    assert set(names) == {item.about.key for item in items}
    both.remove([item.about.name for item in items])
    assert listed(first) == listed(second) == []


async def test_a_promotion_asked_for_twice_is_one_copy(tmp_path: Path) -> None:
    class CountingTier(MemoryTier):
        reads = 0

        def read(self, wanted: TierKey, target: memoryview) -> bool:
            type(self).reads += 1
            asyncio.run_coroutine_threadsafe(going.wait(), loop).result(10)
            return super().read(wanted, target)

    loop, going = asyncio.get_running_loop(), asyncio.Event()
    async with tiered_world() as world:
        node = await world.add_tiered("a", stack(CountingTier, tmp_path))
        space = Promotion(key="k", allocation_id=9, size_bytes=5, checksum=0, slot=0, offset=node.offer().data_offset)
        promote = Promote(term=1, incarnation=1, objects=[space])
        asked = [asyncio.create_task(node.promote(promote, CALL)) for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
        asked[0].cancel()  # whoever asked first has given up
        going.set()
        assert (await asked[1]).tiers == [""]
        assert CountingTier.reads == 1


def test_a_node_goes_on_without_a_tier_whose_disk_does_not_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    sections = [
        TierConfig(kind="lmdb", path=str(tmp_path / "file"), capacity=8 << 20),
        TierConfig(kind="fsspec", path=str(tmp_path / "good"), write="through", sync_interval=0.5),
    ]
    tiers = open_tiers("a", sections)
    assert (tiers.kinds, tiers.write_through, tiers.sync_interval_s) == (["fsspec"], True, 0.5)
    assert "a goes on without its tier lmdb at" in caplog.text
    with pytest.raises(ConfigError, match="another path"):
        open_tiers("a", sections)
    tiers.close()
    open_tiers("a", sections).close()
