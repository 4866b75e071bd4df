"""What leaves a prefill instance: that which did not leave is not announced."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mooncake_core.errors import OutOfRange
from mooncake_core.roles.kv_departure import LEAST_BYTES, MOST_TRANSFERS, KVDeparture


def departure(transfer: Any, num_layers: int = 1, layer_bytes: int = 1) -> KVDeparture:
    """Of a prompt of one token, one block."""
    layout = SimpleNamespace(num_layers=num_layers, blocks_for=lambda tokens: 1)
    instance = SimpleNamespace(
        info=SimpleNamespace(layout=layout),
        layer_bytes=layer_bytes,
        context=SimpleNamespace(spans=SimpleNamespace(add=lambda *_, **__: None)),
        block_tokens=1,
        layers=lambda block, first, last: memoryview(bytearray(last - first)),
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
    leaving.computed(1, 1)
    await leaving.delivered()
    assert leaving.failure == failure


async def test_kv_whose_sending_was_cancelled_is_a_failure() -> None:
    async def transfer(*_: object) -> None:
        await asyncio.sleep(60)

    leaving = departure(transfer)
    leaving.computed(1, 1)
    await asyncio.sleep(0)
    await leaving.abort()
    assert leaving.failure


@pytest.mark.parametrize(
    ("num_layers", "layer_bytes", "lengths"),
    [
        (5, LEAST_BYTES, [1, 1, 1, 1, 1]),
        (5, LEAST_BYTES // 2, [2, 2, 1]),
        (5, 1, [5]),
        (8 * MOST_TRANSFERS, LEAST_BYTES, [8] * MOST_TRANSFERS),
    ],
)
async def test_layers_wait_for_the_next_ones_until_they_are_worth_a_transfer(
    num_layers: int, layer_bytes: int, lengths: list[int]
) -> None:
    sent: list[int] = []

    async def transfer(_kind: object, _memory: object, pairs: list[tuple[list[memoryview], object]]) -> list[Any]:
        sent.extend(piece.nbytes for near, _ in pairs for piece in near)
        return [SimpleNamespace(error=None, path="tcp")]

    leaving = departure(transfer, num_layers=num_layers, layer_bytes=layer_bytes)
    for layer in range(num_layers):
        leaving.computed(1, layer + 1)
    await leaving.delivered()
    assert sent == lengths
    assert not leaving.failure
