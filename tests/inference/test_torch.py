"""The torch engine against transformers' own generate, and what it refuses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence as SequenceOf
from pathlib import Path

import msgspec
import pytest
import torch
import transformers

from mooncake_core.conductor.cost import hint_of
from mooncake_core.config.schema import ClusterConfig, CostConfig, EngineConfig, InstanceConfig
from mooncake_core.errors import ConfigError, ModelError, ModelNotFound, ModelTooLarge
from mooncake_core.inference.batching import Batching, Sequence
from mooncake_core.inference.contract import EngineSettings, Slice
from mooncake_core.inference.loading import load_engine
from mooncake_core.inference.loop import EngineLoop
from mooncake_core.inference.torch import flat_model
from mooncake_core.inference.torch.decode_graphs import Bucket, DecodeGraphs
from mooncake_core.inference.torch.decode_window import DecodeWindow
from mooncake_core.inference.torch.engine import TorchEngine
from mooncake_core.testing.models import FAMILIES, Reference, make_model
from mooncake_core.wire.messages.serving import Sampling

pytestmark = pytest.mark.model
GREEDY = Sampling(temperature=0, max_tokens=24, ignore_eos=True)
SCORED = Sampling(temperature=0, max_tokens=1, logprobs=5)


def settings(folder: Path, **changes: object) -> EngineSettings:
    base = {"model_path": str(folder), "device": "cpu", "block_tokens": 16, "kv_memory_bytes": 16 << 20, "threads": 1}
    return EngineSettings(**{**base, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(request.param, tmp_path_factory.mktemp(request.param))


async def _generate(engine: TorchEngine, prompts: SequenceOf[list[int]], chunk_tokens: int) -> list[list[int]]:
    info = engine.info
    batching = Batching(
        num_blocks=info.num_blocks, block_tokens=info.layout.block_tokens, max_batch=8, chunk_tokens=chunk_tokens
    )
    loop = EngineLoop(engine, batching)

    async def one(number: int, prompt: list[int]) -> list[int]:
        loop.reserve(number, len(prompt) + GREEDY.max_tokens)
        sequence = Sequence(
            sequence_id=number,
            token_ids=list(prompt),
            start=0,
            sampling=GREEDY,
            max_new_tokens=GREEDY.max_tokens,
            eos_token_ids=info.eos_token_ids,
        )
        tokens: list[int] = []
        await loop.run(sequence, lambda output: tokens.append(output.token_id))
        loop.release(number)
        return tokens

    results = await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(prompts)))
    assert loop.check() == []
    await loop.close()
    return list(results)


@pytest.mark.parametrize("chunk_tokens", [7, 64])
async def test_greedy_tokens_are_those_of_generate(folder: Path, chunk_tokens: int) -> None:
    draw = random.Random(3)
    prompts = [[draw.randrange(2, 512) for _ in range(length)] for length in (1, 2, 15, 16, 17, 100, 230)]
    engine = TorchEngine(settings(folder))
    got = await _generate(engine, prompts, chunk_tokens)
    engine.close()
    reference = Reference(folder)
    differences = [reference.compare(prompt, tokens) for prompt, tokens in zip(prompts, got, strict=True)]
    assert [difference for difference in differences if difference and not difference.excused] == []


def test_kv_can_move_to_other_blocks(folder: Path) -> None:
    prompt = list(range(2, 50))
    engine, other = TorchEngine(settings(folder)), TorchEngine(settings(folder))
    whole = Slice(sequence_id=1, token_ids=prompt, start=0, block_ids=[0, 1, 2], sampling=GREEDY)
    expected = engine.step([whole])
    size = engine.info.layout.block_bytes
    for here, there in ((0, 5), (1, 3)):
        other.kv_memory[there * size : (there + 1) * size] = engine.kv_memory[here * size : (here + 1) * size]
    rest = Slice(sequence_id=1, token_ids=prompt[32:], start=32, block_ids=[5, 3, 7], sampling=GREEDY)
    assert other.step([rest]) == expected
    engine.close()
    other.close()


def test_sampling_does_not_depend_on_the_batch(folder: Path) -> None:
    engine = TorchEngine(settings(folder))
    sampling = Sampling(temperature=0.8, top_p=0.9, top_k=50, seed=11)
    alone = Slice(sequence_id=1, token_ids=[5, 6, 7], start=0, block_ids=[0], sampling=sampling)
    crowd = [Slice(sequence_id=n, token_ids=[n] * n, start=0, block_ids=[n], sampling=sampling) for n in range(2, 6)]
    expected = engine.step([alone])[0]
    assert engine.step([*crowd, alone])[-1] == expected
    engine.close()


def test_fingerprints_differ_when_kv_is_not_interchangeable(tmp_path: Path) -> None:
    one = make_model("llama", tmp_path / "one", seed=1)
    same = make_model("llama", tmp_path / "same", seed=1)
    two = make_model("llama", tmp_path / "two", seed=2)

    def mark(folder: Path, **changes: object) -> bytes:
        engine = TorchEngine(settings(folder, **changes))
        engine.close()
        return engine.info.fingerprint

    assert mark(one) == mark(same)
    assert len({mark(one), mark(two), mark(one, block_tokens=32), mark(one, dtype="bfloat16")}) == 4


def test_what_cannot_be_served_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no \\*.safetensors"):
        TorchEngine(settings(tmp_path))
    model = make_model("llama", tmp_path / "model")
    with pytest.raises(ModelTooLarge, match="of KV memory .* = .*available"):
        TorchEngine(settings(model, kv_memory_bytes=1 << 50))
    with pytest.raises(ModelTooLarge, match="does not hold one block"):
        TorchEngine(settings(model, kv_memory_bytes=100))
    with pytest.raises(ConfigError, match="typo"):
        TorchEngine(settings(model, options={"typo": 1}))
    config = msgspec.json.decode((model / "config.json").read_bytes())
    (model / "config.json").write_bytes(msgspec.json.encode({**config, "model_type": "deepseek_v3"}))
    with pytest.raises(ModelError, match="cannot be served"):
        TorchEngine(settings(model))
    (model / "config.json").write_bytes(msgspec.json.encode({**config, "model_type": "nonsense"}))
    with pytest.raises(ModelError, match="not understood"):
        TorchEngine(settings(model))


def test_a_configured_cost_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama", tmp_path / "model")
    cost = CostConfig(prefill_per_token=0.002, step_base=0.01)
    section = InstanceConfig(engine=EngineConfig(device="cpu", kv_memory=16 << 20, cost=cost))
    monkeypatch.setattr(TorchEngine, "step", lambda *_: pytest.fail("it was timed"))
    engine = load_engine(ClusterConfig(model=str(model)), section)
    assert engine.info.cost == hint_of(cost)
    engine.close()


def test_weights_that_are_missing_or_damaged_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_model("llama", tmp_path / "model")
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="no weights for model.layers.1.mlp.down_proj.weight: the download is"):
        TorchEngine(settings(folder))
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        TorchEngine(settings(folder))


def test_attention_that_is_computed_differently_is_refused(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "model")
    config = transformers.Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=16,
        num_key_value_heads=1, attn_logit_softcapping=50.0,
    )  # fmt: skip
    transformers.Gemma2ForCausalLM(config).save_pretrained(folder)
    with pytest.raises(ModelError, match="softcap"):
        TorchEngine(settings(folder))


def test_the_model_written_down_is_used_and_gives_what_the_modules_give(folder: Path) -> None:
    engine = TorchEngine(settings(folder))
    assert engine._forward.__module__ == flat_model.__name__
    assert engine._forward.__qualname__.startswith("flat_forward")
    plain = TorchEngine(settings(folder))
    plain._forward = flat_model._module_forward(plain._model)
    for length in (1, 2, 33):
        prompt = Slice(
            sequence_id=length, token_ids=list(range(2, 2 + length)), start=0, block_ids=[0, 1, 2], sampling=SCORED
        )
        assert engine.step([prompt]) == plain.step([prompt])
        assert engine.logprobs[0].top == pytest.approx(plain.logprobs[0].top, abs=1e-4)
    engine.close()
    plain.close()


@pytest.mark.parametrize("fault", ["export fails", "results differ"])
def test_a_model_that_cannot_be_written_down_runs_module_by_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def fail(model: object) -> None:
        raise RuntimeError("data-dependent")

    if fault == "export fails":
        monkeypatch.setattr(flat_model, "_export", fail)
    else:
        monkeypatch.setattr(flat_model, "_is_identity", lambda node: node.target is torch.ops.aten.silu.default)
    engine = TorchEngine(settings(make_model("llama", tmp_path / "model")))
    assert engine._forward.__qualname__.startswith("_module_forward")
    prompt = Slice(sequence_id=1, token_ids=[5, 6, 7], start=0, block_ids=[0], sampling=GREEDY)
    assert isinstance(engine.step([prompt])[0], int)
    engine.close()


class Shuffled:
    """Sequences that join, leave, pause and come back, as slices of one step after another."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._tokens: dict[int, list[int]] = {}
        self._slots: dict[int, int] = {}
        self._computed: set[int] = set()
        self._chosen: list[int] = []

    def slices(self, number: int) -> list[Slice]:
        """Of the next step; `number` is the id of a sequence that may join."""
        draw = self._draw
        if len(self._tokens) < 6 and draw.random() < 0.4:
            self._tokens[number] = [draw.randrange(2, 512) for _ in range(draw.choice([1, 2, 15, 16, 17, 40]))]
            self._slots[number] = min(set(range(6)) - set(self._slots.values()))
        if self._tokens and draw.random() < 0.1:
            self._leave(draw.choice(list(self._tokens)))
        self._chosen = [known for known in self._tokens if draw.random() < 0.8]
        draw.shuffle(self._chosen)
        return [self._slice(known) for known in self._chosen]

    def take(self, chosen: SequenceOf[int | None]) -> None:
        """What the step gave."""
        for number, token in zip(self._chosen, chosen, strict=True):
            assert token is not None
            self._tokens[number].append(token)
            self._computed.add(number)
            if len(self._tokens[number]) > 90:
                self._leave(number)

    def _slice(self, number: int) -> Slice:
        tokens = self._tokens[number]
        start = len(tokens) - 1 if number in self._computed else 0
        blocks = [self._slots[number] * 6 + part for part in range(-(-len(tokens) // 16))]
        return Slice(sequence_id=number, token_ids=tokens[start:], start=start, block_ids=blocks, sampling=GREEDY)

    def _leave(self, number: int) -> None:
        del self._tokens[number], self._slots[number]


def step_both(plain: TorchEngine, other: TorchEngine, sequences: Shuffled) -> None:
    """150 steps of both engines, each of which must choose the same tokens."""
    for number in range(150):
        slices = sequences.slices(number)
        if slices:
            expected = plain.step(slices)
            assert other.step(slices) == expected
            sequences.take(expected)


@pytest.mark.parametrize("limit_bytes", [1 << 20, 40_000])
def test_the_decode_window_changes_nothing_however_batches_are_put_together(folder: Path, limit_bytes: int) -> None:
    plain, windowed = TorchEngine(settings(folder)), TorchEngine(settings(folder))
    plain._window, windowed._window = None, DecodeWindow(windowed._kv, limit_bytes)
    step_both(plain, windowed, Shuffled(5))
    plain.close()
    windowed.close()


def static(folder: Path, **changes: object) -> TorchEngine:
    """An engine that decodes as on a GPU, without graphs."""
    engine = TorchEngine(settings(folder, **changes))
    engine._window = None
    engine._kv = torch.zeros((len(engine._kv) + 1, *engine._kv.shape[1:]), dtype=engine._kv.dtype)
    engine._graphs = DecodeGraphs(
        engine._kv,
        engine._forward,
        engine._model.get_output_embeddings(),
        windows=engine._windows,
        vocab_size=engine.info.vocab_size,
        limit_bytes=64 << 20,
    )
    return engine


def decode(number: int, token: int, start: int, blocks: SequenceOf[int]) -> Slice:
    return Slice(sequence_id=number, token_ids=[token], start=start, block_ids=blocks, sampling=SCORED)


def test_steps_of_fixed_shapes_give_the_same_tokens_however_batches_are_put_together(folder: Path) -> None:
    plain, fixed = TorchEngine(settings(folder)), static(folder)
    plain._window = None
    step_both(plain, fixed, Shuffled(7))
    assert fixed._graphs is not None
    assert {bucket.num_rows for bucket in fixed._graphs._steps} >= {1, 2, 4}
    plain.close()
    fixed.close()


def test_steps_of_fixed_shapes_give_the_same_probabilities_and_touch_no_other_block(folder: Path) -> None:
    plain, fixed = TorchEngine(settings(folder)), static(folder)
    plain._window = None
    prompts = {1: [list(range(2, 250)), list(range(16))], 2: [[5, 6, 7], [20]], 3: [list(range(9, 40)), [30, 25]]}
    for number, (prompt, blocks) in prompts.items():
        part = Slice(sequence_id=number, token_ids=prompt, start=0, block_ids=blocks)
        plain.step([part])
        fixed.step([part])
    slices = [decode(number, 3, len(prompt), blocks) for number, (prompt, blocks) in prompts.items()]
    before = fixed._kv.clone()
    assert fixed.step(slices) == plain.step(slices)
    for index in range(len(slices)):
        assert fixed.logprobs[index].top == pytest.approx(plain.logprobs[index].top, abs=1e-4)
    changed = (fixed._kv != before).flatten(1).any(1).nonzero().flatten().tolist()
    assert changed == [15, 20, 25, len(before) - 1]
    torch.testing.assert_close(fixed._kv[:-1], plain._kv)
    assert list(fixed._graphs._steps) == [Bucket(4, 16)]
    plain.close()
    fixed.close()


def test_sampling_with_steps_of_fixed_shapes(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "model")
    plain, fixed = TorchEngine(settings(folder)), static(folder)
    warm = Sampling(temperature=0.8, top_p=0.9, seed=11)
    parts = [
        Slice(sequence_id=n, token_ids=[n], start=0, block_ids=[n], sampling=sampling)
        for n, sampling in enumerate((GREEDY, warm, None, SCORED))
    ]
    expected = plain.step(parts)
    assert fixed.step(parts) == expected
    assert expected[2] is None
    assert list(fixed.logprobs) == [3]
    plain.close()
    fixed.close()


def test_batches_for_which_there_is_no_memory_are_computed_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fixed = static(make_model("llama", tmp_path / "model"))
    assert fixed._graphs is not None
    fixed._graphs._limit_bytes = 70_000
    one, two = decode(1, 5, 0, [0]), decode(2, 6, 0, [1])
    first = fixed.step([one])
    assert fixed.step([one, two])[:1] == fixed.step([one, two])[:1] == first
    assert list(fixed._graphs._steps) == [Bucket(1, 16)]
    assert sum("run without a graph" in record.message for record in caplog.records) == 1
    fixed.close()


def test_a_capture_that_fails_is_said_once_and_the_model_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    fixed = static(make_model("llama", tmp_path / "model"))
    assert fixed._graphs is not None
    expected = fixed.step([decode(1, 5, 0, [0])])
    monkeypatch.setattr(fixed._graphs, "_capture", fail)
    fixed._graphs._on_gpu = True  # the step's memory is there already: pinning it would need a GPU
    assert fixed.step([decode(1, 5, 0, [0])]) == fixed.step([decode(1, 5, 0, [0])]) == expected
    assert sum("capturing failed" in record.message for record in caplog.records) == 1
    fixed.close()
