"""What the master keeps of requests ends with them, also where nobody says that they ended."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mooncake_core.conductor import events as e
from mooncake_core.conductor.admission import Baseline
from mooncake_core.conductor.admission.contract import Admission, AdmissionSettings
from mooncake_core.conductor.conductor import Conductor, ConductorSettings
from mooncake_core.conductor.policies import KVCacheCentric
from mooncake_core.conductor.policies.contract import PolicySettings
from mooncake_core.errors import InvalidRequest, PeerUnreachable, RequestRejected
from mooncake_core.roles.master.conductor import ConductorDriver
from mooncake_core.store.events import BlocksRemoved, BlocksStored
from mooncake_core.store.tier_events import ObjectsLoaded
from mooncake_core.telemetry.spans import Spans
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.membership import ChangeRole, InstanceOffer, ModelOffer, SwitchRole
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.serving import (
    Place,
    Placed,
    PrefillEnded,
    Release,
    RequestEnded,
    Reservation,
    Reserve,
    Reserved,
)
from mooncake_core.wire.messages.tiering import DRAM, LOWER, Tier

MODEL = ModelOffer(name="m", fingerprint=b"f", block_tokens=4, block_bytes=1, max_context_tokens=99, vocab_size=99)
MEMORY = SegmentDescriptor(owner="d", host_id="h", incarnation=1, length_bytes=1, paths={})
CALL = cast(Any, SimpleNamespace(peer="gateway"))


class FakeDecode:
    """Grants every reservation."""

    def __init__(self) -> None:
        self.released: list[str] = []
        self.roles: list[str] = []
        self.refuses = False
        """To change its role."""

    async def call(self, message: Any, reply_type: type, *, timeout_s: float) -> Any:
        if isinstance(message, Reserve):
            return Reserved(reservation=Reservation(reservation_id=1, memory=MEMORY, block_offsets=[0]))
        if isinstance(message, ChangeRole):
            if self.refuses:
                raise PeerUnreachable("nobody answers")
            self.roles.append(message.role)
            return Done()
        assert isinstance(message, Release)
        self.released.append(message.request_id)
        return Done()


def make_driver(decode: FakeDecode, admission: Admission | None = None) -> ConductorDriver:
    conductor = Conductor(ConductorSettings(), KVCacheCentric(PolicySettings()), "test", random.Random(0), admission)
    driver = ConductorDriver(
        conductor, client_of=lambda name: cast(Any, decode), address_of=lambda name: name, spans=Spans("master")
    )
    for role in ("prefill", "decode"):
        driver.feed(e.InstanceJoined(role[0], cast(Any, role), InstanceOffer(model=MODEL, num_blocks=9)))
    return driver


async def place(driver: ConductorDriver, request_id: str) -> Placed:
    message = Place(
        request_id=request_id, model="m", fingerprint=b"f", prompt_tokens=4, max_tokens=4, block_keys=[], deadline_s=0.2
    )
    placed = await driver.handlers()[Place](message, CALL)
    assert isinstance(placed, Placed)
    return placed


async def test_what_is_refused_when_its_prefill_has_ended_is_told_so() -> None:
    decode = FakeDecode()
    driver = make_driver(decode, Baseline(AdmissionSettings(tbt_slo_s=1e-9)))
    assert (await place(driver, "r")).checked_at_decode
    with pytest.raises(RequestRejected, match="exceeds the objective") as caught:
        driver.handlers()[PrefillEnded](PrefillEnded(request_id="r", cached_tokens=0, computed_s=0.1), CALL)
    assert caught.value.detail["retry_after_s"] > 0
    await asyncio.sleep(0.01)
    assert decode.released == ["r"]
    assert (driver._refused_at_decode, driver._asked_by, driver.conductor.num_requests) == ({}, {}, 0)
    await driver.close()


async def test_an_instance_changes_its_role_when_it_is_asked_to() -> None:
    decode = FakeDecode()
    driver = make_driver(decode)
    driver.handlers()[SwitchRole](SwitchRole(name="p", role="decode"), CALL)
    driver.handlers()[SwitchRole](SwitchRole(name="d", role="decode"), CALL)  # it is that already
    assert driver.conductor.missing() == ["no prefill instance has joined"], "it gets no more requests"
    await asyncio.sleep(0.01)
    assert decode.roles == ["decode"]
    with pytest.raises(InvalidRequest, match="expected the name of a prefill or decode instance, got nobody"):
        driver.handlers()[SwitchRole](SwitchRole(name="nobody", role="decode"), CALL)
    await driver.close()


async def test_an_instance_that_refuses_to_change_its_role_takes_requests_again() -> None:
    decode = FakeDecode()
    decode.refuses = True
    driver = make_driver(decode)
    driver.handlers()[SwitchRole](SwitchRole(name="p", role="decode"), CALL)
    await asyncio.sleep(0.01)
    assert driver.conductor.missing() == []
    assert (await place(driver, "r")).prefill == "p"
    await driver.close()


@pytest.mark.parametrize("how", ["deadline", "ended", "gateway left"])
async def test_nothing_is_kept_of_a_request_that_ended(how: str) -> None:
    decode = FakeDecode()
    driver = make_driver(decode)
    await place(driver, "r")
    assert driver._asked_by == {"r": "gateway"}
    if how == "ended":
        driver.handlers()[RequestEnded](RequestEnded(request_id="r"), CALL)
    elif how == "gateway left":
        driver.gateway_left("gateway")
    await asyncio.sleep(0.4 if how == "deadline" else 0.01)
    assert decode.released == ["r"]
    assert (driver._asked_by, driver._prompt_tokens_of, driver._placing) == ({}, {}, {})
    assert driver.conductor.num_requests == 0
    await driver.close()


async def test_the_conductor_hears_where_nodes_have_blocks_and_how_fast_they_load_them() -> None:
    conductor = Conductor(ConductorSettings(), KVCacheCentric(PolicySettings()), "test", random.Random(0))
    driver = ConductorDriver(
        conductor, client_of=lambda name: None, address_of=lambda name: name, spans=Spans("master")
    )
    driver.feed(e.InstanceJoined("p", "prefill", InstanceOffer(model=MODEL, num_blocks=9, local_node="near")))
    index, instance = conductor._prefill.index, conductor._prefill.instances["p"]
    key = b"1" * 16
    held = 1 << index.number("near")
    tiers: list[Tier] = [LOWER, DRAM]
    for tier in tiers:
        driver.on_pool_change(BlocksStored("near", [key.hex(), "of no block"], tier))
        assert index.holders(key) == held
        assert bool(index.match([key]).lower) == (tier == LOWER)
    driver.on_pool_change(BlocksRemoved("near", [key.hex()]))
    assert index.holders(key) == 0
    before = instance.cost.load_bytes_per_s
    driver.on_pool_change(ObjectsLoaded("near", 1 << 20, 1.0))
    assert instance.cost.load_bytes_per_s < before
    await driver.close()
