"""Decode through CUDA graphs beside eager decode, and what leaving by layer costs prefill, on a GPU: `scripts/acceptance gpu`.

Ways are run in turns on one engine; figures are medians of rounds. `modules` is the model as transformers runs it,
`eager` the model written down, `graphs` the same captured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from mooncake_core.inference.contract import EngineSettings, LayerWatcher, Slice
from mooncake_core.inference.models import DEMO_FOLDER
from mooncake_core.inference.torch import flat_model
from mooncake_core.inference.torch.engine import TorchEngine
from mooncake_core.wire.messages.serving import Sampling

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]
BATCHES = (1, 8, 32)
CONTEXT_TOKENS = 512
NUM_STEPS = 48
ROUNDS = 5
PREFILL_TOKENS = 2000
GREEDY = Sampling(temperature=0, ignore_eos=True)


def large_model(folder: Path) -> Path:
    """A Llama of 1.2 billion random weights, 16 layers, 32 heads over 8 KV heads."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    return folder


@pytest.fixture(scope="module", params=["demo float32", "demo bfloat16", "1.2B bfloat16"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchEngine]:
    name, dtype = request.param.split()
    folder = DEMO_FOLDER if name == "demo" else large_model(tmp_path_factory.mktemp("large"))
    started = time.monotonic()
    made = TorchEngine(
        EngineSettings(model_path=str(folder), device="cuda", dtype=dtype, block_tokens=32, kv_memory_bytes=1 << 30)
    )
    print(f"\n== {request.param} on {torch.cuda.get_device_name()}, loaded in {time.monotonic() - started:.1f}s")
    yield made
    made.close()
    torch.cuda.empty_cache()


def ways(engine: TorchEngine) -> dict[str, Callable[[], None]]:
    """By name, what makes the engine compute that way."""
    graphs, forward = engine._graphs, engine._forward
    modules = flat_model._module_forward(engine._model)

    def choose(chosen_forward: Any, chosen_graphs: Any) -> None:
        engine._forward, engine._graphs = chosen_forward, chosen_graphs

    return {
        "modules": lambda: choose(modules, None),
        "eager": lambda: choose(forward, None),
        "graphs": lambda: choose(forward, graphs),
    }


def decode(engine: TorchEngine, batch: int, context_tokens: int) -> tuple[float, list[list[int | None]]]:
    """Tokens/s of decode steps, each of which takes the tokens of the one before; and the tokens."""
    blocks = engine.info.layout.blocks_for(context_tokens + NUM_STEPS)
    tokens: list[int | None] = [2 + number for number in range(batch)]
    chosen = []
    torch.cuda.synchronize()
    started = time.perf_counter()
    for start in range(context_tokens, context_tokens + NUM_STEPS):
        used = engine.info.layout.blocks_for(start + 1)
        slices = [
            Slice(
                sequence_id=number,
                token_ids=[token or 0],
                start=start,
                block_ids=range(number * blocks, number * blocks + used),
                sampling=GREEDY,
            )
            for number, token in enumerate(tokens)
        ]
        tokens = engine.step(slices)
        chosen.append(tokens)
    return batch * NUM_STEPS / (time.perf_counter() - started), chosen


def prepare(engine: TorchEngine, batch: int, context_tokens: int) -> None:
    """KV of so many sequences."""
    blocks = engine.info.layout.blocks_for(context_tokens + NUM_STEPS)
    used = engine.info.layout.blocks_for(context_tokens)
    for number in range(batch):
        prompt = [2 + (7 * number + index) % 1000 for index in range(context_tokens)]
        held = range(number * blocks, number * blocks + used)
        engine.step([Slice(sequence_id=number, token_ids=prompt, start=0, block_ids=held)])


@pytest.mark.parametrize(("batch", "context_tokens"), [*((batch, CONTEXT_TOKENS) for batch in BATCHES), (8, 1900)])
def test_graphs_bring_more_tokens(engine: TorchEngine, batch: int, context_tokens: int) -> None:
    prepare(engine, batch, context_tokens)
    choices = ways(engine)
    rates: dict[str, list[float]] = {name: [] for name in choices}
    chosen: dict[str, list[list[int | None]]] = {}
    for number in range(ROUNDS + 1):
        for name, choose in choices.items():
            choose()
            rate, chosen[name] = decode(engine, batch, context_tokens)
            if number:  # the first round is for warming up and capturing
                rates[name].append(rate)
    equal = sum(
        one == other
        for eager, graphs in zip(chosen["eager"], chosen["graphs"], strict=True)
        for one, other in zip(eager, graphs, strict=True)
    )
    figures = ", ".join(
        f"{name} {median(found):.0f} ({min(found):.0f} to {max(found):.0f})" for name, found in rates.items()
    )
    ratio = median(rates["graphs"]) / median(rates["eager"])
    print(
        f"\ndecode of {batch} at {context_tokens} tokens, tokens/s: {figures}; graphs {ratio:.2f} of eager, a step "
        f"{batch / median(rates['graphs']) * 1e3:.2f} ms; {equal} of {batch * NUM_STEPS} tokens equal"
    )
    assert engine._graphs is not None
    assert not engine._graphs._failed
    assert ratio > 1


class Watching:
    """Only looks on."""

    def __init__(self) -> None:
        self.written_s: list[float] = []

    def before_layer(self, layer: int) -> None: ...

    def layer_written(self, layer: int) -> None:
        self.written_s.append(time.perf_counter())


def test_what_leaving_by_layer_costs_prefill(engine: TorchEngine) -> None:
    blocks = range(engine.info.layout.blocks_for(PREFILL_TOKENS))
    prompt = [2 + index % 1000 for index in range(PREFILL_TOKENS)]
    part = Slice(sequence_id=1, token_ids=prompt, start=0, block_ids=blocks, sampling=GREEDY)
    choices: dict[str, Callable[[], LayerWatcher | None]] = {"alone": lambda: None, "watched": Watching}
    times_s: dict[str, list[float]] = {name: [] for name in choices}
    first_s = 0.0
    for number in range(ROUNDS + 2):
        for name, choose in choices.items():
            watcher = choose()
            torch.cuda.synchronize()
            started = time.perf_counter()
            engine.step([part], watcher)
            if number > 1:
                times_s[name].append(time.perf_counter() - started)
            if isinstance(watcher, Watching):
                first_s = watcher.written_s[0] - started
    size = len(blocks) * engine.info.layout.block_bytes
    torch.cuda.synchronize()
    started = time.perf_counter()
    engine.stage_out(blocks)
    whole_s = time.perf_counter() - started
    alone, watched = (median(found) * 1e3 for found in times_s.values())
    print(
        f"\nprefill of {PREFILL_TOKENS} tokens: {alone:.2f} ms, watched by layer {watched:.2f} ms (the first layer on the host "
        f"after {first_s * 1e3:.2f} ms); {size / 1e6:.0f} MB to the host at once: {whole_s * 1e3:.2f} ms, "
        f"{size / whole_s / 1e9:.1f} GB/s"
    )
