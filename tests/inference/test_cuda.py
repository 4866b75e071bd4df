"""The torch engine on a GPU: its tokens with and without graphs, and KV between GPU and host. Skipped where there is none."""

from __future__ import annotations

import random
from collections.abc import Sequence as SequenceOf
from pathlib import Path

import pytest
import torch

from mooncake_core.inference.batching import Batching, Sequence
from mooncake_core.inference.contract import EngineSettings, Slice
from mooncake_core.inference.models import DEMO_FOLDER
from mooncake_core.inference.torch.engine import TorchEngine
from mooncake_core.testing.engine_contract import EngineContract, Recording
from mooncake_core.testing.models import FAMILIES, Reference, make_model
from mooncake_core.wire.messages.serving import Sampling

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]
LENGTHS = (1, 2, 15, 16, 17, 100, 230, 270)
NUM_TOKENS = 24


def engine_of(folder: Path, **changes: object) -> TorchEngine:
    base = {"model_path": str(folder), "device": "cuda", "dtype": "float32", "block_tokens": 16}
    return TorchEngine(EngineSettings(**{**base, "kv_memory_bytes": 16 << 20, **changes}))  # type: ignore[arg-type]


def generate(engine: TorchEngine, prompts: SequenceOf[list[int]]) -> list[list[int]]:
    """Greedy tokens; each sequence leaves a little later than the one before it."""
    info = engine.info
    batching = Batching(num_blocks=info.num_blocks, block_tokens=info.layout.block_tokens, max_batch=8, chunk_tokens=64)
    results: list[list[int]] = [[] for _ in prompts]
    for number, prompt in enumerate(prompts):
        sampling = Sampling(temperature=0, max_tokens=NUM_TOKENS + number, ignore_eos=True)
        batching.reserve(number, len(prompt) + sampling.max_tokens)
        batching.start(
            Sequence(
                sequence_id=number,
                token_ids=list(prompt),
                start=0,
                sampling=sampling,
                max_new_tokens=sampling.max_tokens,
            )
        )
    while not batching.idle:
        for emitted in batching.complete(engine.step(batching.plan())):
            results[emitted.sequence_id].append(emitted.token_id)
    return results


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
@pytest.mark.parametrize("batch", [1, 8])
def test_greedy_tokens_are_those_of_generate(folder: Path, batch: int, graphs: bool) -> None:
    draw = random.Random(3)
    prompts = [[draw.randrange(2, 512) for _ in range(length)] for length in LENGTHS[-batch:]]
    engine = engine_of(folder)
    captured = engine._graphs
    assert captured is not None
    if not graphs:
        engine._graphs = None
    got = generate(engine, prompts)
    assert not captured._failed
    assert captured._steps
    assert all(step.graph is not None for step in captured._steps.values())
    engine.close()
    reference = Reference(folder)
    differences = [reference.compare(prompt, tokens) for prompt, tokens in zip(prompts, got, strict=True)]
    assert [difference for difference in differences if difference and not difference.excused] == []


def test_the_model_written_down_is_used(folder: Path) -> None:
    engine = engine_of(folder)
    assert engine._forward.__qualname__.startswith("flat_forward")
    engine.close()


def test_graphs_give_the_probabilities_of_eager_steps(folder: Path) -> None:
    engine = engine_of(folder)
    scored = Sampling(temperature=0, logprobs=5)
    engine.step([Slice(sequence_id=1, token_ids=list(range(2, 140)), start=0, block_ids=list(range(9)))])
    part = Slice(sequence_id=1, token_ids=[7], start=138, block_ids=list(range(9)), sampling=scored)
    for _ in range(2):  # captured, then replayed
        engine.step([part])
        with_graph = engine.logprobs[0]
    engine._graphs = None
    engine.step([part])
    assert with_graph.top == pytest.approx(engine.logprobs[0].top, abs=1e-4)
    engine.close()


def test_a_model_that_cannot_be_captured_goes_on_without_graphs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of(make_model("llama", tmp_path))
    assert engine._graphs is not None
    forward = engine._forward

    def reads_back(input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return forward(input_ids, position_ids) if int(position_ids.sum()) >= 0 else input_ids

    expected = generate(engine, [[5, 6, 7]])
    engine._graphs._steps.clear()
    engine._graphs._forward = reads_back
    assert generate(engine, [[5, 6, 7]]) == expected
    torch.cuda.empty_cache()
    assert generate(engine, [[5, 6, 7]]) == expected
    assert sum("capturing failed" in record.message for record in caplog.records) == 1
    engine.close()


def test_kv_memory_is_pinned_and_blocks_come_back_as_they_left(tmp_path: Path) -> None:
    engine = engine_of(make_model("llama", tmp_path))
    mirror = engine._mirror
    assert mirror is not None
    assert mirror.pinned
    engine.step([Slice(sequence_id=1, token_ids=list(range(2, 50)), start=0, block_ids=[4, 5, 9])])
    expected = engine._kv.clone()
    engine.stage_out([9, 4, 5])
    assert torch.equal(mirror._host[[4, 5, 9]], expected[[4, 5, 9]].cpu())
    engine._kv.zero_()
    engine.stage_in([5, 4])
    for layer in range(expected.shape[1]):
        engine.stage_in([9], layer)
    assert torch.equal(engine._kv[[4, 5, 9]], expected[[4, 5, 9]])
    assert not engine._kv[[0, 3, 6, 8, 10]].any()
    engine.close()


def test_a_layer_that_is_said_to_be_written_lies_on_the_host(tmp_path: Path) -> None:
    engine = engine_of(make_model("llama", tmp_path))
    assert engine._mirror is not None
    host, seen = engine._mirror._host, []
    prompt = Slice(sequence_id=1, token_ids=list(range(2, 50)), start=0, block_ids=[7, 2, 3])
    engine.step([prompt], Recording(written=lambda layer: seen.append(host[[7, 2, 3], layer].clone())))
    for layer, found in enumerate(seen):
        assert torch.equal(found, engine._kv[[7, 2, 3], layer].cpu())
        assert found.any()
    engine.close()


class TestContract(EngineContract):
    engine = TorchEngine
    model_path = str(DEMO_FOLDER)

    def settings(self, **changes: object) -> EngineSettings:
        return super().settings(device="cuda", dtype="float32", **changes)
