"""Batching: nobody waits for ever, no block has two owners, and sampling is a function of its seed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as SequenceOf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mooncake_core.errors import EngineError, NoSpace, RequestCancelled
from mooncake_core.inference.batching import Batching, Sequence
from mooncake_core.inference.contract import EngineSettings, LayerWatcher, Slice
from mooncake_core.inference.counter import uniform
from mooncake_core.inference.loop import EngineLoop, Output
from mooncake_core.inference.mock import MockEngine
from mooncake_core.inference.models import DEMO_FOLDER
from mooncake_core.wire.messages.serving import Sampling

EOS = 1


def batching(**changes: int) -> Batching:
    return Batching(**{"num_blocks": 20, "block_tokens": 4, "max_batch": 3, "chunk_tokens": 6, **changes})


def sequence(number: int, prompt: int = 5, new: int = 3, start: int = 0, **sampling: object) -> Sequence:
    return Sequence(
        sequence_id=number,
        token_ids=list(range(10, 10 + prompt)),
        start=start,
        sampling=Sampling(**sampling),  # type: ignore[arg-type]
        max_new_tokens=new,
        eos_token_ids=(EOS,),
    )


def started(made: Batching, number: int, prompt: int = 5, new: int = 3, **sampling: object) -> None:
    made.reserve(number, prompt + new)
    made.start(sequence(number, prompt, new, **sampling))


def step(made: Batching, token: int = 7) -> list[tuple[int, int, str | None]]:
    slices = made.plan()
    emitted = made.complete([token if part.sampling else None for part in slices])
    return [(item.sequence_id, item.token_id, item.finish_reason) for item in emitted]


def test_a_prompt_goes_in_chunks_and_then_token_by_token() -> None:
    made = batching()
    started(made, 1, prompt=8, new=2)
    (first,) = made.plan()
    assert (list(first.token_ids), first.start, len(first.block_ids), first.sampling) == (
        list(range(10, 16)),
        0,
        2,
        None,
    )
    assert made.complete([None]) == []
    (second,) = made.plan()
    assert (list(second.token_ids), second.start, second.sampling is not None) == ([16, 17], 6, True)
    made.complete([42])
    (third,) = made.plan()
    assert (list(third.token_ids), third.start, len(third.block_ids)) == ([42], 8, 3)
    assert made.complete([43])[0].finish_reason == "length"
    assert made.idle


@pytest.mark.parametrize(
    ("token", "sampling", "reason"),
    [(EOS, {}, "stop"), (EOS, {"ignore_eos": True}, None), (9, {"stop_token_ids": [9]}, "stop"), (7, {}, None)],
)
def test_a_sequence_ends_when_it_should(token: int, sampling: dict[str, object], reason: str | None) -> None:
    made = batching()
    started(made, 1, **sampling)
    assert step(made, token) == [(1, token, reason)]


def test_prompts_share_a_step_in_order_of_arrival() -> None:
    made = batching(chunk_tokens=10)
    started(made, 1, prompt=7)
    started(made, 2, prompt=7)
    assert [(part.sequence_id, len(part.token_ids)) for part in made.plan()] == [(1, 7), (2, 3)]


def test_decoding_goes_on_while_a_long_prompt_is_prefilled() -> None:
    made = batching()
    started(made, 1, prompt=2, new=10)
    step(made)
    started(made, 2, prompt=20)
    for _ in range(3):
        assert [part.sequence_id for part in made.plan()] == [1, 2]
        made.complete([7, None])


def test_more_sequences_than_a_batch_holds_take_turns() -> None:
    made = batching(num_blocks=40)
    for number in range(5):
        started(made, number, prompt=1, new=6)
    seen: dict[int, int] = {}
    for _ in range(10):
        for number, _, _ in step(made):
            seen[number] = seen.get(number, 0) + 1
    assert set(seen) == set(range(5))
    assert max(seen.values()) - min(seen.values()) <= 1


def test_memory_is_bounded_and_said_so() -> None:
    made = batching()
    made.reserve(1, 60)
    with pytest.raises(NoSpace, match="6 blocks of KV memory are needed, 5 of 20 are free"):
        made.reserve(2, 24)
    made.release(1)
    made.reserve(2, 80)
    with pytest.raises(EngineError, match="no memory"):
        made.start(sequence(3))


def test_blocks_released_during_a_step_are_free_only_after_it() -> None:
    made = batching(num_blocks=2)
    started(made, 1)
    made.plan()
    made.release(1)
    with pytest.raises(NoSpace):
        made.reserve(2, 4)
    assert made.complete([7]) == []
    made.reserve(2, 8)


def test_a_failed_step_ends_its_sequences_and_no_others() -> None:
    made = batching()
    started(made, 1)
    made.plan()
    started(made, 2)
    assert made.fail() == [1]
    assert [part.sequence_id for part in made.plan()] == [2]


class BatchingMachine(RuleBasedStateMachine):
    """Random histories."""

    def __init__(self) -> None:
        super().__init__()
        self.made = batching()
        self.number = 0
        self.known: list[int] = []
        self.in_step: list[Slice] | None = None

    @rule(prompt=st.integers(1, 12), new=st.integers(1, 6))
    def arrive(self, prompt: int, new: int) -> None:
        self.number += 1
        try:
            started(self.made, self.number, prompt, new)
            self.known.append(self.number)
        except NoSpace:
            pass

    @rule(index=st.integers(0, 10))
    def release(self, index: int) -> None:
        if self.known:
            self.made.release(self.known.pop(index % len(self.known)))

    @rule()
    def plan(self) -> None:
        if self.in_step is None:
            self.in_step = self.made.plan()
            blocks = [block for part in self.in_step for block in part.block_ids]
            assert len(blocks) == len(set(blocks))

    @rule(token=st.sampled_from([7, EOS]), failed=st.booleans())
    def finish(self, token: int, failed: bool) -> None:
        if self.in_step is not None:
            if failed:
                self.made.fail()
            else:
                self.made.complete([token if part.sampling else None for part in self.in_step])
            self.in_step = None

    @invariant()
    def adds_up(self) -> None:
        assert self.made.check() == []

    def teardown(self) -> None:
        if self.in_step is not None:
            self.made.fail()
        for number in self.known:
            self.made.release(number)
        assert self.made.load().free_blocks == 20


TestBatchingMachine = BatchingMachine.TestCase
TestBatchingMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.integers(0, 2**63), st.integers(0, 2**40))
def test_numbers_are_a_function_of_seed_and_position(seed: int, position: int) -> None:
    number = uniform(seed, position)
    assert 0 <= number < 1
    assert number == uniform(seed, position)


def test_numbers_are_evenly_spread() -> None:
    numbers = sorted(uniform(seed, position) for seed in range(20) for position in range(200))
    assert all(abs(number - index / 4000) < 0.03 for index, number in enumerate(numbers))


class Failing(MockEngine):
    """Fails on token 13."""

    def step(self, slices: SequenceOf[Slice], watcher: LayerWatcher | None = None) -> list[int | None]:
        if any(13 in part.token_ids for part in slices):
            raise ZeroDivisionError("oops")
        return super().step(slices, watcher)


def loop_of(kind: type[MockEngine]) -> EngineLoop:
    engine = kind(
        EngineSettings(model_path=str(DEMO_FOLDER), block_tokens=4, kv_memory_bytes=1 << 20, options={"speed": 1000})
    )
    return EngineLoop(engine, batching())


def ignore(output: Output) -> None:
    pass


async def test_the_loop_survives_a_failing_engine(caplog: pytest.LogCaptureFixture) -> None:
    loop = loop_of(Failing)
    loop.reserve(1, 8)
    with pytest.raises(EngineError, match="ZeroDivisionError: oops"):
        await loop.run(sequence(1), ignore)
    loop.release(1)
    loop.reserve(2, 8)
    outputs: list[Output] = []
    await loop.run(sequence(2, prompt=3), outputs.append)
    assert [output.finish_reason for output in outputs] == [None, None, "length"]
    loop.release(2)
    assert loop.check() == []
    assert loop.load().free_blocks == 20
    await loop.close()


async def begun(loop: EngineLoop) -> asyncio.Task[None]:
    """A sequence that runs, and has brought a token."""
    first = asyncio.Event()
    running = asyncio.create_task(loop.run(sequence(1, new=50, ignore_eos=True), lambda output: first.set()))
    await first.wait()
    return running


async def test_releasing_a_running_sequence_tells_whoever_waits() -> None:
    loop = loop_of(MockEngine)
    loop.reserve(1, 60)
    running = await begun(loop)
    loop.release(1)
    with pytest.raises(RequestCancelled):
        await running
    await loop.close()
    assert loop.check() == []


async def test_blocks_that_a_step_gives_back_are_announced() -> None:
    loop = loop_of(MockEngine)
    freed = asyncio.Event()
    loop.on_freed = freed.set
    loop.reserve(1, 80)  # all there are
    running = await begun(loop)
    loop.release(1)
    while loop.load().free_blocks == 0:
        await asyncio.wait_for(freed.wait(), 5)
    assert loop.load().free_blocks == 20
    await asyncio.gather(running, return_exceptions=True)
    await loop.close()


class Miscounting(MockEngine):
    """Gives one token too many."""

    def step(self, slices: SequenceOf[Slice], watcher: LayerWatcher | None = None) -> list[int | None]:
        return [*super().step(slices, watcher), 7]


async def test_an_engine_that_breaks_its_contract_fails_its_sequences_and_nothing_hangs() -> None:
    loop = loop_of(Miscounting)
    loop.reserve(1, 8)
    with pytest.raises(EngineError, match="ValueError"):
        await asyncio.wait_for(loop.run(sequence(1), ignore), 5)
    loop.release(1)
    assert loop.check() == []
    await loop.close()


async def test_cancelling_stops_the_sequence_and_keeps_its_blocks() -> None:
    loop = loop_of(MockEngine)
    blocks = loop.reserve(1, 60)
    running = await begun(loop)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert loop.load().running_requests == 0
    assert loop.load().free_blocks == 20 - len(blocks)
    loop.release(1)
    await asyncio.sleep(0.05)
    assert loop.load().free_blocks == 20
    await loop.close()
