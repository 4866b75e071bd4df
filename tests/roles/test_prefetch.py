"""What a request that was placed will read is brought up from tiers at once."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from mooncake_core.conductor import events as e
from mooncake_core.conductor.conductor import Conductor, ConductorSettings
from mooncake_core.conductor.policies import KVCacheCentric
from mooncake_core.conductor.policies.contract import PolicySettings
from mooncake_core.errors import MooncakeError
from mooncake_core.roles.master.conductor import ConductorDriver
from mooncake_core.roles.master.pool import PoolDriver
from mooncake_core.store.evictions import LRU
from mooncake_core.store.pool import Pool
from mooncake_core.store.pool_settings import PoolSettings
from mooncake_core.telemetry.spans import Spans
from mooncake_core.wire.messages.membership import InstanceOffer
from mooncake_core.wire.messages.serving import Place
from tests.roles.test_conductor_driver import MODEL, FakeDecode


async def test_what_the_prefill_of_a_placed_prompt_will_read_is_prefetched() -> None:
    wanted: list[list[str]] = []
    conductor = Conductor(ConductorSettings(), KVCacheCentric(PolicySettings()), "test", random.Random(0))
    driver = ConductorDriver(
        conductor,
        client_of=lambda name: cast(Any, FakeDecode()),
        address_of=lambda name: name,
        spans=Spans("master"),
        prefetch=lambda keys: wanted.append(list(keys)),
    )
    place = Place(
        request_id="r",
        model="m",
        fingerprint=b"f",
        prompt_tokens=9,
        max_tokens=4,
        block_keys=[b"1" * 16, b"2" * 16],
        deadline_s=5,
    )
    call = cast(Any, SimpleNamespace(peer="gateway"))
    with pytest.raises(MooncakeError):
        await cast(Any, driver.handlers()[Place](place, call))
    assert wanted == [], "nobody can take it"
    for role in ("prefill", "decode"):
        driver.feed(e.InstanceJoined(role[0], cast(Any, role), InstanceOffer(model=MODEL, num_blocks=9)))
    await cast(Any, driver.handlers()[Place](place, call))
    assert wanted == [], "the pool has none of it"
    driver.feed(e.BlocksStored("far", place.block_keys[:1], "lower"))
    await cast(Any, driver.handlers()[Place](msgspec.structs.replace(place, request_id="s"), call))
    assert wanted == [["31" * 16]]
    await driver.close()


async def test_what_the_conductor_wants_copied_goes_to_the_pool_by_its_names() -> None:
    copied: list[tuple[list[str], str]] = []
    settings = ConductorSettings(replication_threshold=2.0)
    driver = ConductorDriver(
        Conductor(settings, KVCacheCentric(PolicySettings()), "test", random.Random(0)),
        client_of=lambda name: cast(Any, FakeDecode()),
        address_of=lambda name: name,
        spans=Spans("master"),
        copy=lambda keys, node: copied.append((list(keys), node)),
    )
    for role in ("prefill", "decode"):
        offer = InstanceOffer(model=MODEL, num_blocks=9, local_node="near")
        driver.feed(e.InstanceJoined(role[0], cast(Any, role), offer))
    keys = [b"1" * 16, b"2" * 16]
    driver.feed(e.BlocksStored("far", keys))
    place = Place(
        request_id="r", model="m", fingerprint=b"f", prompt_tokens=9, max_tokens=4, block_keys=keys, deadline_s=5
    )
    await cast(Any, driver.handlers()[Place](place, cast(Any, SimpleNamespace(peer="gateway"))))
    assert copied == [(["31" * 16, "32" * 16], "near")]
    await driver.close()


async def test_a_pool_without_tiers_is_not_asked() -> None:
    pool = Pool(PoolSettings(), term=1, next_id=lambda: 1, eviction=LRU)
    driver = PoolDriver(pool, term=1, node_client=lambda name: None, on_change=lambda change: None)

    def keys() -> Any:
        raise AssertionError("they are not even looked at")
        yield

    driver.prefetch(keys())
    await driver.close()
