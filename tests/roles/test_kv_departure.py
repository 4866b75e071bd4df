"""What leaves a prefill instance: that which did not leave is not announced."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mooncake_core.errors import OutOfRange
from mooncake_core.roles.kv_departure import KVDeparture


def departure(transfer: Any) -> KVDeparture:
    """Of a prompt of one token, one block, one layer."""
    layout = SimpleNamespace(num_layers=1, blocks_for=lambda tokens: 1)
    instance = SimpleNamespace(
        info=SimpleNamespace(layout=layout),
        layer_bytes=1,
        block_tokens=1,
        layers=lambda block, first, last: memoryview(bytearray(1)),
        transfer=SimpleNamespace(transfer=transfer),
    )
    reservation = SimpleNamespace(memory=None, block_offsets=[0])
    message = SimpleNamespace(reservation=reservation, request_id="r", token_ids=[1], block_keys=[])
    return KVDeparture(cast(Any, instance), cast(Any, message), [0], 0, cast(Any, None))


@pytest.mark.parametrize(
    ("error", "failure"), [(OutOfRange("not exported"), "not exported"), (ZeroDivisionError(), "ZeroDivisionError")]
)
async def test_kv_that_could_not_be_sent_is_a_failure_whatever_the_reason(error: Exception, failure: str) -> None:
    async def transfer(*_: object) -> None:
        raise error

    leaving = departure(transfer)
    leaving.computed(1, 0, 1)
    await leaving.delivered()
    assert leaving.failure == failure


async def test_kv_whose_sending_was_cancelled_is_a_failure() -> None:
    async def transfer(*_: object) -> None:
        await asyncio.sleep(60)

    leaving = departure(transfer)
    leaving.computed(1, 0, 1)
    await asyncio.sleep(0)
    await leaving.abort()
    assert leaving.failure
