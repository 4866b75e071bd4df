"""What the master keeps of requests ends with them, also where nobody says that they ended."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mooncake_core.conductor import events as e
from mooncake_core.conductor.conductor import Conductor, ConductorSettings
from mooncake_core.conductor.policies import KVCacheCentric
from mooncake_core.conductor.policies.contract import PolicySettings
from mooncake_core.roles.master.conductor import ConductorDriver
from mooncake_core.telemetry.spans import Spans
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.membership import InstanceOffer, ModelOffer
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.serving import Place, Placed, Release, RequestEnded, Reservation, Reserve, Reserved

MODEL = ModelOffer(name="m", fingerprint=b"f", block_tokens=4, block_bytes=1, max_context_tokens=99, vocab_size=99)
MEMORY = SegmentDescriptor(owner="d", host_id="h", incarnation=1, length_bytes=1, paths={})


class FakeDecode:
    """Grants every reservation."""

    def __init__(self) -> None:
        self.released: list[str] = []

    async def call(self, message: Any, reply_type: type, *, timeout_s: float) -> Any:
        if isinstance(message, Reserve):
            return Reserved(reservation=Reservation(reservation_id=1, memory=MEMORY, block_offsets=[0]))
        assert isinstance(message, Release)
        self.released.append(message.request_id)
        return Done()


@pytest.mark.parametrize("how", ["deadline", "ended", "gateway left"])
async def test_nothing_is_kept_of_a_request_that_ended(how: str) -> None:
    decode = FakeDecode()
    conductor = Conductor(ConductorSettings(), KVCacheCentric(PolicySettings()), "test", random.Random(0))
    driver = ConductorDriver(
        conductor, client_of=lambda name: cast(Any, decode), address_of=lambda name: name, spans=Spans("master")
    )
    for role in ("prefill", "decode"):
        driver.feed(e.InstanceJoined(role[0], cast(Any, role), InstanceOffer(model=MODEL, num_blocks=9)))
    place = Place(
        request_id="r", model="m", fingerprint=b"f", prompt_tokens=4, max_tokens=4, block_keys=[], deadline_s=0.2
    )
    call = cast(Any, SimpleNamespace(peer="gateway"))
    placed = await driver.handlers()[Place](place, call)
    assert isinstance(placed, Placed)
    assert driver._asked_by == {"r": "gateway"}
    if how == "ended":
        driver.handlers()[RequestEnded](RequestEnded(request_id="r"), call)
    elif how == "gateway left":
        driver.gateway_left("gateway")
    await asyncio.sleep(0.4 if how == "deadline" else 0.01)
    assert decode.released == ["r"]
    assert (driver._asked_by, driver._prompt_tokens_of, driver._placing) == ({}, {}, {})
    assert conductor.num_requests == 0
    await driver.close()
