"""What leaves a prefill instance: that which did not leave is not announced."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mooncake_core.errors import OutOfRange
from mooncake_core.roles.kv_departure import LEAST_BYTES, MOST_TRANSFERS, PUT_MARGIN, KVDeparture, PoolTarget


def departure(transfer: Any, num_layers: int = 1, layer_bytes: int = 1, pool: PoolTarget | None = None) -> KVDeparture:
    """Of a prompt of one token, one block; with a pool, the block is to go there."""
    layout = SimpleNamespace(num_layers=num_layers, blocks_for=lambda tokens: 1)
    instance = SimpleNamespace(
        info=SimpleNamespace(layout=layout),
        layer_bytes=layer_bytes,
        block_bytes=num_layers * layer_bytes,
        context=SimpleNamespace(spans=SimpleNamespace(add=lambda *_, **__: None)),
        block_tokens=1,
        layers=lambda block, first, last: memoryview(bytearray(last - first)),
        transfer=SimpleNamespace(transfer=transfer),
    )
    reservation = SimpleNamespace(memory=None, block_offsets=[0])
    message = SimpleNamespace(
        reservation=reservation, request_id="r", token_ids=[1], block_keys=[b"k" * 16] if pool else []
    )
    return KVDeparture(cast(Any, instance), cast(Any, message), [0], 0, cast(Any, pool))


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


class FakePool:
    """Takes puts that end before their deadline; counts the others."""

    def __init__(self, writer_deadline_s: float) -> None:
        self.target = PoolTarget(cast(Any, self), "", 1, writer_deadline_s)
        self._writer_deadline_s = writer_deadline_s
        self.began_after_layers: list[int] = []
        self.layers_computed = 0
        self.committed: list[int] = []
        """Bytes of each object."""
        self.given_back = 0
        self.late = 0

    async def begin_put(self, wanted: Any, **_: Any) -> FakePutting:
        self.began_after_layers.append(self.layers_computed)
        return FakePutting(self, time.monotonic() + self._writer_deadline_s)


class FakePutting:
    def __init__(self, pool: FakePool, deadline: float) -> None:
        self.granted = [0]
        self.deadline = deadline
        self._pool = pool
        self._num_bytes = 0

    async def write(self, parts: dict[int, list[memoryview]]) -> None:
        await asyncio.sleep(0.001)
        self._num_bytes += parts[0][0].nbytes

    async def end(self, *, timeout_s: float, commit: bool) -> None:
        self._pool.late += time.monotonic() > self.deadline + 0.2
        if commit:
            self._pool.committed.append(self._num_bytes)
        else:
            self._pool.given_back += 1


async def sent(*_: object) -> list[Any]:
    return [SimpleNamespace(error=None, path="tcp")]


async def compute(leaving: KVDeparture, pool: FakePool, pauses_s: list[float]) -> None:
    """One layer after each pause, then waits for the pool."""
    for layer, pause_s in enumerate(pauses_s, 1):
        await asyncio.sleep(pause_s)
        pool.layers_computed = layer
        leaving.computed(1, layer)
    await leaving.pooled()


async def test_a_chunk_that_takes_longer_than_a_put_may_is_cached_all_the_same() -> None:
    pool = FakePool(writer_deadline_s=0.6)
    leaving = departure(sent, 20, LEAST_BYTES, pool.target)
    await compute(leaving, pool, [0.06] * 20)
    assert pool.committed == [20]
    assert (pool.given_back, pool.late) == (0, 0)
    # 0.06 s per layer: the put begins when what is left takes a third of the deadline.
    assert 14 <= pool.began_after_layers[0] <= 19
    assert PUT_MARGIN == 3


async def test_a_chunk_that_is_quick_goes_into_the_pool_while_it_is_computed() -> None:
    pool = FakePool(writer_deadline_s=30)
    leaving = departure(sent, MOST_TRANSFERS, LEAST_BYTES, pool.target)
    await compute(leaving, pool, [0.01] * MOST_TRANSFERS)
    assert pool.committed == [MOST_TRANSFERS]
    assert pool.began_after_layers == [2]


async def test_a_put_whose_layers_are_late_is_given_back_in_time_and_begun_anew() -> None:
    pool = FakePool(writer_deadline_s=0.3)
    leaving = departure(sent, 4, LEAST_BYTES, pool.target)
    await compute(leaving, pool, [0.01, 0.01, 0.6, 0.6])
    assert pool.committed == [4]
    assert (pool.given_back, pool.late) == (1, 0)
    assert pool.began_after_layers == [2, 4]


async def test_a_request_that_is_given_up_before_its_put_has_begun_leaves_nothing() -> None:
    pool = FakePool(writer_deadline_s=30)
    leaving = departure(sent, 4, LEAST_BYTES, pool.target)
    leaving.computed(1, 1)
    await asyncio.sleep(0)
    await leaving.abort()
    assert (pool.began_after_layers, pool.committed) == ([], [])
