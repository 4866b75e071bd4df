"""What clients ask about objects, and have done to them, over real sockets."""

from __future__ import annotations

import os

import pytest

from mooncake_core.errors import InvalidRequest, NoSpace, ObjectNotFound
from mooncake_core.store import scans
from mooncake_core.store.client import PutObject, PutOptions, StoreClient
from mooncake_core.wire.messages.pool import Remove, Removed, RemovedAll
from tests.store.world import SIZE, World, world


async def list_all(store: StoreClient, **fields: str) -> list[str]:
    return sorted([key async for keys in store.list_keys(timeout_s=5, **fields) for key in keys])


async def test_a_description_takes_no_lease() -> None:
    async with world("a", "b") as w:
        await w.put("k", replicas=2)
        (found, missing) = await w.store.describe(["k", "x"], timeout_s=5)
        assert missing is None
        assert found is not None
        assert (found.key, found.size_bytes, found.lease_s) == ("k", SIZE, 0.0)
        assert {replica.node for replica in found.replicas} == {"a", "b"}
        assert await w.store.get_size("k", timeout_s=5) == SIZE
        assert await w.store.get_size("x", timeout_s=5) is None
        assert await w.store.remove(["k"], timeout_s=5) == [""]


async def test_listing_and_removal_of_more_than_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "SLICE", 7)
    async with world("a") as w:
        keys = sorted(f"k{number}" for number in range(50))
        await w.put(*keys, size=100)
        assert await list_all(w.store) == keys
        assert await list_all(w.store, pattern="[05]$") == [key for key in keys if key[-1] in "05"]
        assert await w.store.remove_matching("[05]$", timeout_s=5) == RemovedAll(removed=10, kept=0)
        assert await list_all(w.store, prefix="k1") == [key for key in keys if key[:2] == "k1" and key[-1] not in "05"]
        with pytest.raises(InvalidRequest, match="regular expression of RE2"):
            await w.store.remove_matching("(", timeout_s=5)
        assert await w.store.remove_all(timeout_s=5, force=True) == RemovedAll(removed=40, kept=0)
        assert w.pool.check() == []


async def test_tenants_bytes_come_back_to_them_alone() -> None:
    async with world("a") as w:
        acme = StoreClient(w.master, engine=w.engine, tenant="acme")
        values = {name: os.urandom(SIZE) for name in ("acme", "default")}
        for name, store in (("acme", acme), ("default", w.store)):
            piece = memoryview(values[name])
            assert await store.put([PutObject(key="k", pieces=[piece], parent="p")], timeout_s=5) == [""]
        for name, store in (("acme", acme), ("default", w.store)):
            buffer = bytearray(SIZE)
            assert await store.get(["k"], [[memoryview(buffer)]], timeout_s=5) == [True]
            assert buffer == values[name]
            assert await list_all(store) == ["k"]
        assert await acme.remove(["k"], timeout_s=5, force=True) == [""]
        assert await acme.exists(["k"], timeout_s=5) == [False]
        assert await w.store.exists(["k"], timeout_s=5) == [True]


async def test_an_empty_object_comes_back() -> None:
    async with world("a") as w:
        assert (await w.put("k", size=0))[0] == [""]
        assert await w.get("k", size=0) == ([True], [b""])
        assert await w.store.get_size("k", timeout_s=5) == 0


async def test_an_upsert_replaces_the_bytes() -> None:
    async with world("a") as w:
        await w.put("k")
        value = os.urandom(2 * SIZE)
        item = PutObject(key="k", pieces=[memoryview(value)])
        assert await w.store.put([item], timeout_s=5, options=PutOptions(upsert=True)) == [""]
        assert await w.get("k", size=2 * SIZE) == ([True], [value])


async def test_pins_and_groups_are_said_with_the_put_or_later() -> None:
    async with world("a") as w:
        item = PutObject(key="k", pieces=[memoryview(b"x")], group="g")
        await w.store.put([item], timeout_s=5, options=PutOptions(hard_pin=True))
        (found,) = await w.store.describe(["k"], timeout_s=5)
        assert found is not None
        assert (found.hard_pinned, found.group) == (True, "g")
        assert await w.store.pin(["k", "x"], timeout_s=5, soft_s=60.0) == ["", ObjectNotFound.code]
        (found,) = await w.store.describe(["k"], timeout_s=5)
        assert found is not None
        assert not found.hard_pinned
        assert 0 < found.soft_pin_s <= 60


async def test_a_put_waits_for_space_that_is_on_its_way() -> None:
    async with world("a", read_lease_s=0.3) as w:
        codes, _ = await w.put(*[f"k{number}" for number in range(110)])
        full = [f"k{number}" for number, code in enumerate(codes) if not code]
        await w.get(*full)
        item = PutObject(key="more", pieces=[memoryview(bytes(SIZE))])
        assert await w.store.put([item], timeout_s=5, wait_for_space_s=5) == [NoSpace.code]  # none is on its way
        await _force_out(w, full[0])
        assert await w.store.put([item], timeout_s=5) == [NoSpace.code]
        assert await w.store.put([item], timeout_s=5, wait_for_space_s=5) == [""]


async def _force_out(w: World, key: str) -> None:
    removed = await w.master.call(Remove(keys=[key], force=True), Removed, timeout_s=5)
    assert removed.refusals == [""]
