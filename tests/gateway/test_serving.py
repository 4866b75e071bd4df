"""A request's way over real sockets, with a master and instances of a few lines: every path ends exactly once."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mooncake_core.address import HostPort
from mooncake_core.errors import (
    EngineError,
    InvalidRequest,
    MooncakeError,
    NoSpace,
    RequestCancelled,
    RequestRejected,
    ServiceUnavailable,
    TransferError,
)
from mooncake_core.gateway.attempt import LOST_GRACE_S
from mooncake_core.gateway.generation import Generation, Step
from mooncake_core.gateway.serving import ClusterServing
from mooncake_core.telemetry.spans import Spans
from mooncake_core.wire.client import Clients
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.membership import ModelOffer
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.serving import (
    AskKV,
    Decode,
    DescribeModels,
    KVState,
    Logprobs,
    Models,
    Place,
    Placed,
    Prefill,
    Prefilled,
    PrefillEnded,
    Release,
    RequestEnded,
    Reservation,
    Sampling,
    Tokens,
)
from mooncake_core.wire.server import Call, Server

MODEL = ModelOffer(name="m", fingerprint=b"f", block_tokens=4, block_bytes=1, max_context_tokens=99, vocab_size=99)
MEMORY = SegmentDescriptor(owner="d", host_id="h", incarnation=1, length_bytes=1, paths={})


class FakeCluster:
    """Master, prefill and decode in one server; records what it is told."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.place_error: MooncakeError | None = None
        self.prefill_error: MooncakeError | None = None
        self.decode_error: MooncakeError | None = None
        self.errors: dict[str, list[MooncakeError]] = {}
        self.prefill_url = ""
        self.decode_waits = False
        self.kv_arrived = False
        self.first_finish: Any = None
        self.hang_in = ""
        self.hanging = asyncio.Event()
        self.cancelled: list[str] = []
        self.asked_for_models = 0
        self.checked_at_decode = False

    def handlers(self) -> dict[type, Any]:
        return {
            DescribeModels: self.models,
            Place: self.place,
            Prefill: self.prefill,
            Decode: self.decode,
            AskKV: self.kv_state,
            Release: self.note,
            PrefillEnded: self.prefill_ended,
            RequestEnded: self.note,
        }

    async def models(self, message: DescribeModels, call: Call) -> Models:
        self.asked_for_models += 1
        return Models(models=[MODEL])

    async def note(self, message: Any, call: Call) -> Done:
        self.log.append(message)
        return Done()

    async def prefill_ended(self, message: PrefillEnded, call: Call) -> Done:
        self.log.append(message)
        self.maybe_fail("prefill ended")
        return Done()

    async def place(self, message: Place, call: Call) -> Placed:
        self.log.append(message)
        await self.maybe_hang("place")
        if self.place_error:
            raise self.place_error
        self.maybe_fail("place")
        reservation = Reservation(reservation_id=5, memory=MEMORY, block_offsets=[0])
        return Placed(
            request_id=message.request_id,
            prefill="p",
            prefill_address=self.prefill_url or self.url,
            decode="d",
            decode_address=self.url,
            reservation=reservation,
            matched_tokens=len(message.block_keys) * MODEL.block_tokens,
            expected_ttft_s=0,
            expected_tbt_s=0,
            checked_at_decode=self.checked_at_decode,
        )

    async def prefill(self, message: Prefill, call: Call) -> Prefilled:
        self.log.append(message)
        await self.maybe_hang("prefill")
        if self.prefill_error:
            raise self.prefill_error
        self.maybe_fail("prefill")
        return Prefilled(
            token_id=7,
            finish_reason=self.first_finish,
            cached_tokens=4,
            queued_s=0,
            fetched_s=0,
            computed_s=0.5,
            logprobs=Logprobs(chosen=-0.5) if message.sampling.logprobs >= 0 else None,
        )

    async def decode(self, message: Decode, call: Call) -> Tokens:
        self.log.append(message)
        while self.decode_waits:
            await asyncio.sleep(0.01)
        count = 1 if message.sampling.logprobs >= 0 else 0
        call.reply(Tokens(token_ids=[8], logprobs=[Logprobs(chosen=-0.5)] * count))
        await asyncio.sleep(0.005)  # the next ones come apart
        self.maybe_fail("decode")
        await self.maybe_hang("decode")
        if self.decode_error:
            raise self.decode_error
        return Tokens(token_ids=[9, 10], finish_reason="length", logprobs=[Logprobs(chosen=-0.5)] * 2 * count)

    async def kv_state(self, message: AskKV, call: Call) -> KVState:
        self.log.append(message)
        return KVState(arrived=self.kv_arrived)

    async def maybe_hang(self, where: str) -> None:
        if self.hang_in == where:
            self.hanging.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.append(where)
                raise

    def maybe_fail(self, where: str) -> None:
        if self.errors.get(where):
            raise self.errors[where].pop(0)

    def kinds(self) -> Counter[str]:
        return Counter(type(message).__name__ for message in self.log)

    def ended(self) -> RequestEnded:
        (found,) = [message for message in self.log if isinstance(message, RequestEnded)]
        return found


@asynccontextmanager
async def running() -> AsyncIterator[tuple[FakeCluster, ClusterServing]]:
    cluster = FakeCluster()
    server = Server("cluster", cluster.handlers())
    cluster.url = (await server.start(HostPort("127.0.0.1", 0))).url
    clients = Clients("gateway")
    serving = ClusterServing(clients.get(cluster.url), clients, Spans("gateway"), patience_s=0.5)
    try:
        yield cluster, serving
        await serving.close()
    finally:
        await clients.close()
        await server.close()


def generation(tokens: int = 9) -> Generation:
    return Generation(
        request_id="r", model=MODEL, token_ids=list(range(tokens)), sampling=Sampling(max_tokens=4), timeout_s=20
    )


async def collect(serving: ClusterServing) -> list[Step]:
    return [step async for step in serving.generate(generation())]


async def test_a_request_is_placed_prefilled_decoded_and_ended() -> None:
    async with running() as (cluster, serving):
        steps = await collect(serving)
        await serving.close()
        assert [token for step in steps for token in step.token_ids] == [7, 8, 9, 10]
        assert [step.finish_reason for step in steps] == [None, None, "length"]
        assert {step.cached_tokens for step in steps} == {4}
        # A decode instance that has come to the end has let the memory go.
        assert cluster.kinds() == Counter(["Place", "Prefill", "PrefillEnded", "Decode", "RequestEnded"])
        assert cluster.ended() == RequestEnded(request_id="r", released=True, output_tokens=4)
        place = next(message for message in cluster.log if isinstance(message, Place))
        prefill = next(message for message in cluster.log if isinstance(message, Prefill))
        assert (len(place.block_keys), len(prefill.block_keys), prefill.max_cached_blocks) == (2, 2, 2)
        decode = next(message for message in cluster.log if isinstance(message, Decode))
        assert (decode.first_token_id, decode.prompt_tokens, decode.reservation_id) == (7, 9, 5)


async def test_the_last_block_of_a_prompt_of_whole_blocks_is_stored_but_not_asked_for() -> None:
    async with running() as (cluster, serving):
        _ = [step async for step in serving.generate(generation(tokens=8))]
        place = next(message for message in cluster.log if isinstance(message, Place))
        prefill = next(message for message in cluster.log if isinstance(message, Prefill))
        assert (len(place.block_keys), len(prefill.block_keys), prefill.max_cached_blocks) == (1, 2, 1)


async def test_a_request_that_ends_with_its_first_token_needs_no_decode() -> None:
    async with running() as (cluster, serving):
        cluster.first_finish = "stop"
        steps = await collect(serving)
        await serving.close()
        assert [step.token_ids for step in steps] == [[7]]
        assert cluster.kinds()["Decode"] == 0
        assert cluster.kinds()["Release"] == 1
        assert cluster.ended().request_id == "r"


async def test_what_a_request_asks_reaches_everybody() -> None:
    async with running() as (cluster, serving):
        asked = dataclasses.replace(
            generation(), tenant="t", priority=-3, store=False, sampling=Sampling(max_tokens=4, logprobs=2)
        )
        steps = [step async for step in serving.generate(asked)]
        place, prefill, decode = (
            next(message for message in cluster.log if isinstance(message, kind)) for kind in (Place, Prefill, Decode)
        )
        assert (place.tenant, place.priority, prefill.priority, decode.priority) == ("t", -3, -3, -3)
        assert (prefill.sampling.logprobs, decode.sampling.logprobs) == (2, 2)
        assert [len(step.logprobs) for step in steps] == [1, 1, 2]
        # What is not to be stored needs no keys but those to be read.
        assert (len(prefill.block_keys), prefill.max_cached_blocks) == (2, 2)


async def test_no_two_tenants_or_salts_share_keys() -> None:
    async with running() as (cluster, serving):
        for changes in ({}, {"tenant": "a"}, {"tenant": "b"}, {"cache_salt": "a"}, {"tenant": "a", "cache_salt": "a"}):
            _ = [step async for step in serving.generate(dataclasses.replace(generation(), **changes))]
        keys = [tuple(message.block_keys) for message in cluster.log if isinstance(message, Place)]
        assert len(set(keys)) == len(keys) == 5


async def test_the_keys_of_a_prompt_that_is_not_stored_end_where_reading_does() -> None:
    async with running() as (cluster, serving):
        for store in (True, False):
            _ = [step async for step in serving.generate(dataclasses.replace(generation(tokens=8), store=store))]
        prefills = [message for message in cluster.log if isinstance(message, Prefill)]
        assert [(len(message.block_keys), message.max_cached_blocks) for message in prefills] == [(2, 1), (1, 1)]


@pytest.mark.parametrize("where", ["prefill_error", "decode_error"])
async def test_an_error_ends_the_request_as_failed_and_frees_it(where: str) -> None:
    async with running() as (cluster, serving):
        setattr(cluster, where, InvalidRequest("broken"))
        with pytest.raises(InvalidRequest, match="broken"):
            await collect(serving)
        await serving.close()
        assert cluster.ended().request_id == "r"
        assert cluster.kinds()["Release"] == 1


async def test_a_lost_prefill_costs_attempts_and_is_avoided() -> None:
    async with running() as (cluster, serving):
        cluster.errors = {"prefill": [TransferError("broken"), RequestCancelled("it is shutting down")]}
        steps = await collect(serving)
        await serving.close()
        places = [message for message in cluster.log if isinstance(message, Place)]
        assert [place.request_id for place in places] == ["r", "r.2", "r.3"]
        assert [place.avoid for place in places] == [[], ["p"], ["p", "p"]]
        assert [token for step in steps for token in step.token_ids] == [7, 8, 9, 10]
        assert steps[0].timings.attempts == 3
        ended = [message.request_id for message in cluster.log if isinstance(message, RequestEnded)]
        assert sorted(ended) == ["r", "r.2", "r.3"]


async def test_a_lost_decode_goes_on_elsewhere_after_the_tokens_that_were_sent() -> None:
    async with running() as (cluster, serving):
        cluster.errors = {"decode": [TransferError("its KV did not come")]}
        steps = await collect(serving)
        first, second = [message for message in cluster.log if isinstance(message, Prefill)]
        assert second.token_ids == [*first.token_ids, 7, 8]
        assert (first.sampling.max_tokens, second.sampling.max_tokens) == (4, 2)
        assert second.sampling.seed == first.sampling.seed
        assert {step.cached_tokens for step in steps} == {4}
        assert next(m for m in cluster.log if isinstance(m, Place) and m.avoid).avoid == ["d"]


async def test_an_engine_that_fails_twice_on_the_same_tokens_ends_the_request() -> None:
    async with running() as (cluster, serving):
        cluster.errors = {"prefill": [EngineError("broken")] * 5}
        with pytest.raises(EngineError, match="broken"):
            await collect(serving)
        assert cluster.kinds()["Prefill"] == 2


async def test_a_request_waits_for_instances_that_are_to_be_back_but_not_for_ever() -> None:
    async with running() as (cluster, serving):
        cluster.errors = {"place": [ServiceUnavailable("nobody is there")] * 2}
        assert [token for step in await collect(serving) for token in step.token_ids] == [7, 8, 9, 10]
        cluster.place_error = ServiceUnavailable("nobody is there")
        with pytest.raises(ServiceUnavailable):
            await collect(serving)


async def test_a_prefill_that_dies_before_its_kv_has_arrived_is_noticed() -> None:
    async with running() as (cluster, serving):
        prefill = Server("prefill", cluster.handlers())
        cluster.prefill_url = (await prefill.start(HostPort("127.0.0.1", 0))).url
        cluster.decode_waits = True
        task = asyncio.create_task(collect(serving))
        while not cluster.kinds()["Decode"]:
            await asyncio.sleep(0.01)
        cluster.prefill_url = ""
        await prefill.close()
        while cluster.kinds()["Place"] < 2:
            await asyncio.sleep(0.01)
        cluster.decode_waits = False
        steps = await asyncio.wait_for(task, 10)
        assert [token for step in steps for token in step.token_ids] == [7, 7, 8, 9, 10]


@pytest.mark.parametrize("lives_on", [False, True])
async def test_a_decode_that_is_slow_is_waited_for_although_the_connection_to_prefill_broke(lives_on: bool) -> None:
    """The KV is there, or the prefill instance is, at the same address: nothing is lost."""
    async with running() as (cluster, serving):
        prefill = Server("prefill", cluster.handlers())
        address = await prefill.start(HostPort("127.0.0.1", 0))
        cluster.prefill_url, cluster.decode_waits, cluster.kv_arrived = address.url, True, not lives_on
        task = asyncio.create_task(collect(serving))
        while not cluster.kinds()["Decode"]:
            await asyncio.sleep(0.01)
        await prefill.close()
        if lives_on:
            prefill = Server("prefill", cluster.handlers())
            await prefill.start(address)
        await asyncio.sleep(4 * LOST_GRACE_S)
        assert cluster.kinds()["AskKV"] == (2 if lives_on else 1)
        cluster.decode_waits = False
        steps = await asyncio.wait_for(task, 10)
        await prefill.close()
        assert [token for step in steps for token in step.token_ids] == [7, 8, 9, 10]
        assert cluster.kinds()["Place"] == 1


@pytest.mark.parametrize("error", [RequestRejected("busy", retry_after_s=3), NoSpace("full")])
async def test_a_request_that_was_not_placed_has_nothing_to_end(error: MooncakeError) -> None:
    async with running() as (cluster, serving):
        cluster.place_error = error
        with pytest.raises(type(error)):
            await collect(serving)
        await serving.close()
        assert cluster.kinds() == Counter(["Place"])


@pytest.mark.parametrize("first_finish", [None, "stop"])
async def test_what_is_rejected_when_its_prefill_has_ended_gets_no_token(first_finish: str | None) -> None:
    async with running() as (cluster, serving):
        cluster.checked_at_decode = True
        cluster.first_finish = first_finish
        cluster.errors = {"prefill ended": [RequestRejected("too slow", retry_after_s=3)]}
        if first_finish:  # there is nothing to decode
            assert [step.token_ids for step in await collect(serving)] == [[7]]
            await serving.close()
        else:
            with pytest.raises(RequestRejected, match="too slow"):
                await collect(serving)
            await serving.close()
            assert cluster.kinds() == Counter(["Place", "Prefill", "PrefillEnded", "Release", "RequestEnded"])
        assert cluster.ended().output_tokens == 0


async def test_a_master_that_cannot_check_turns_nobody_away() -> None:
    async with running() as (cluster, serving):
        cluster.checked_at_decode = True
        cluster.errors = {"prefill ended": [ServiceUnavailable("restarting", retry_after_s=3)]}
        assert [token for step in await collect(serving) for token in step.token_ids] == [7, 8, 9, 10]


async def test_a_request_that_goes_on_elsewhere_is_not_to_be_rejected() -> None:
    async with running() as (cluster, serving):
        cluster.checked_at_decode = True
        cluster.errors = {"decode": [EngineError("lost")], "prefill ended": []}
        await collect(serving)
        await serving.close()
        assert [message.resumed for message in cluster.log if isinstance(message, Place)] == [False, True]


@pytest.mark.parametrize("where", ["place", "prefill", "decode"])
async def test_a_client_that_goes_away_cancels_the_work_and_frees_the_memory(where: str) -> None:
    async with running() as (cluster, serving):
        cluster.hang_in = where
        task = asyncio.create_task(collect(serving))
        await asyncio.wait_for(cluster.hanging.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await serving.close()
        for _ in range(200):
            if cluster.cancelled:
                break
            await asyncio.sleep(0.01)
        assert cluster.cancelled == [where]
        if where != "place":
            assert cluster.ended().request_id == "r"
            assert cluster.kinds()["Release"] == 1


async def test_models_are_asked_for_once_in_a_while() -> None:
    async with running() as (cluster, serving):
        for _ in range(5):
            assert await serving.models() == [MODEL]
        assert cluster.asked_for_models == 1


async def test_a_hang_up_while_it_is_placed_is_told_to_the_master() -> None:
    async with running() as (cluster, serving):
        cluster.hang_in = "place"
        asking = asyncio.create_task(collect(serving))
        await asyncio.wait_for(cluster.hanging.wait(), 5)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await serving.close()
        assert cluster.ended().request_id == "r"


async def test_nothing_watches_a_prefill_instance_when_its_request_is_over() -> None:
    async with running() as (cluster, serving):
        for finish in ("stop", None):
            cluster.first_finish = finish
            await collect(serving)
        await asyncio.sleep(0)  # callbacks of what was cancelled
        assert all(not client._watchers for client in serving._clients._clients.values())
