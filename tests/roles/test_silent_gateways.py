"""A gateway that is silent keeps its requests while it may live, and no longer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from mooncake_core.roles.master.silent_gateways import SilentGateways
from mooncake_core.wire.messages.membership import Join

GRACE_S, LOOK_S = 0.6, 0.05


class Watched:
    def __init__(self) -> None:
        self.gone: list[str] = []
        self.gateways = SilentGateways(self.gone.append, grace_s=GRACE_S, look_s=LOOK_S)
        self.listener = socket.create_server(("127.0.0.1", 0))  # a stopped process: it accepts nothing

    def join(self, incarnation: int = 1) -> Join:
        address = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        return Join(name="g", role="gateway", host_id="h", incarnation=incarnation, control_address=address, pid=1)


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    made = Watched()
    yield made
    await made.gateways.close()
    made.listener.close()


async def test_one_that_comes_back_has_lost_nothing(watched: Watched) -> None:
    watched.gateways.silent(watched.join())
    await asyncio.sleep(GRACE_S / 2)
    watched.gateways.joined(watched.join())
    await asyncio.sleep(GRACE_S)
    assert watched.gone == []


async def test_one_that_stays_away_is_given_up_after_the_grace(watched: Watched) -> None:
    watched.gateways.silent(watched.join())
    await asyncio.sleep(GRACE_S / 2)
    assert watched.gone == []
    await asyncio.sleep(GRACE_S)
    assert watched.gone == ["g"]


async def test_one_that_is_dead_is_given_up_at_once(watched: Watched) -> None:
    watched.gateways.silent(watched.join())
    await asyncio.sleep(2 * LOOK_S)
    assert watched.gone == []
    watched.listener.close()
    await asyncio.sleep(4 * LOOK_S)
    assert watched.gone == ["g"]


async def test_another_process_in_its_place_ends_its_requests(watched: Watched) -> None:
    watched.gateways.silent(watched.join())
    watched.gateways.joined(watched.join(incarnation=2))
    assert watched.gone == ["g"]
    await asyncio.sleep(2 * GRACE_S)
    assert watched.gone == ["g"]
