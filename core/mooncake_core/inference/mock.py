"""The mock engine: sleeps what a cost model says. Its tokens and KV bytes are functions of the prompt, so tests can tell
whether the right bytes arrived."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from mooncake_core.errors import ConfigError, EngineError
from mooncake_core.inference.contract import Engine, EngineInfo, EngineSettings, LayerWatcher, Slice
from mooncake_core.inference.models import eos_token_ids, read_json
from mooncake_core.kvcache.layout import KVLayout
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.wire.messages.membership import CostHint
from mooncake_core.wire.messages.serving import Logprobs


class MockOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine's `options` in the YAML."""

    speed: float = 1.0
    """Everything takes 1/speed of the time."""
    verify: bool = True
    """Check that the KV of earlier positions is what this sequence's tokens make."""
    cost: CostHint = CostHint()
    """The times to sleep."""


def parse_options(options: Mapping[str, Any]) -> MockOptions:
    """
    Raises:
        ConfigError: an option is unknown or of a wrong type.
    """
    try:
        return msgspec.convert(dict(options), MockOptions)
    except msgspec.ValidationError as error:
        raise ConfigError(f"engine.options of the mock engine: {error}") from error


def cost_of(options: MockOptions) -> CostHint:
    """What its computations take, the speed taken into account."""
    cost = options.cost
    times = [name for name in cost.__struct_fields__ if not name.endswith("_bytes_per_s")]
    return msgspec.structs.replace(cost, **{name: getattr(cost, name) / options.speed for name in times})


def kv_layout(block_tokens: int) -> KVLayout:
    """Its KV, which is small."""
    return KVLayout(num_layers=2, num_kv_heads=1, head_dim=8, dtype="float32", block_tokens=block_tokens)


class MockEngine(Engine):
    """Takes time and memory like an engine, computes nothing."""

    def __init__(self, settings: EngineSettings) -> None:
        self._options = parse_options(settings.options)
        folder = Path(settings.model_path)
        config = read_json(folder / "config.json")
        layout = kv_layout(settings.block_tokens)
        num_blocks = settings.kv_memory_bytes // layout.block_bytes
        self._memory = SharedMemory("kv", max(1, num_blocks) * layout.block_bytes)
        self._view = self._memory.view
        self._logprobs: dict[int, Logprobs] = {}
        vocab_size = int(config.get("vocab_size", 2048))
        identity = f"mock-1 {layout} {vocab_size}".encode()
        self._info = EngineInfo(
            model_name=folder.name,
            fingerprint=hashlib.blake2b(identity, digest_size=16).digest(),
            layout=layout,
            num_blocks=num_blocks,
            max_context_tokens=int(config.get("max_position_embeddings", 4096)),
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids(folder),
            cost=cost_of(self._options),
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def kv_memory(self) -> memoryview:
        return self._view

    @property
    def kv_descriptor(self) -> int | None:
        return self._memory.descriptor

    def stage_in(self, block_ids: Sequence[int], layer: int | None = None) -> None:
        """Nothing to do: it computes in kv_memory."""

    def stage_out(self, block_ids: Sequence[int]) -> None:
        """Nothing to do: it computes in kv_memory."""

    def step(self, slices: Sequence[Slice], watcher: LayerWatcher | None = None) -> list[int | None]:
        num_layers = self._info.layout.num_layers
        duration_s = self._duration_s(slices)
        begun = time.monotonic()
        if watcher is None:
            self._write_all(slices)
            _sleep_until(begun + duration_s)
        else:
            for layer in range(num_layers):
                watcher.before_layer(layer)
                begun = time.monotonic()
                if layer == 0:  # the records are the K of the first layer
                    self._write_all(slices)
                watcher.layer_written(layer)
                _sleep_until(begun + duration_s / num_layers)
        tokens = [self._next_token(part) if part.sampling else None for part in slices]
        self._logprobs = {
            index: self._imagined(token_id, part.sampling.logprobs)
            for index, (part, token_id) in enumerate(zip(slices, tokens, strict=True))
            if token_id is not None and part.sampling is not None and part.sampling.logprobs >= 0
        }
        return tokens

    @property
    def logprobs(self) -> Mapping[int, Logprobs]:
        return self._logprobs

    def close(self) -> None:
        """Nothing to do: the memory is freed with the last view of it."""

    def _duration_s(self, slices: Sequence[Slice]) -> float:
        cost = self._info.cost
        total = 0.0
        decoding = [part for part in slices if len(part.token_ids) == 1]
        if decoding:
            context = sum(part.start for part in decoding)
            total += cost.step_base_s + cost.step_per_sequence_s * len(decoding)
            total += cost.step_per_context_token_s * context
        for part in slices:
            if len(part.token_ids) > 1:
                end = part.start + len(part.token_ids)
                total += cost.prefill_base_s + cost.prefill_per_token_s * len(part.token_ids)
                total += cost.prefill_per_token2_s * (end**2 - part.start**2)
        return total

    def _record(self, block_ids: Sequence[int], position: int) -> tuple[int, int]:
        """Where the record of a position lies: the K of its token in layer 0."""
        layout = self._info.layout
        block = block_ids[position // layout.block_tokens]
        row = layout.head_dim * layout.num_kv_heads * layout.element_bytes
        start = block * layout.block_bytes + (position % layout.block_tokens) * row
        return start, start + 16

    def _write_all(self, slices: Sequence[Slice]) -> None:
        for part in slices:
            self._verify_start(part)
            self._write(part)

    def _write(self, part: Slice) -> None:
        """Each position's record is a digest of the record before it and its token."""
        before = self._state(part.block_ids, part.start)
        for index, token_id in enumerate(part.token_ids):
            before = _chain(before, token_id)
            start, end = self._record(part.block_ids, part.start + index)
            self._view[start:end] = before

    def _state(self, block_ids: Sequence[int], position: int) -> bytes:
        if position == 0:
            return bytes(16)
        start, end = self._record(block_ids, position - 1)
        return bytes(self._view[start:end])

    def _verify_start(self, part: Slice) -> None:
        if self._options.verify and part.start and self._state(part.block_ids, part.start) == bytes(16):
            raise EngineError(f"sequence {part.sequence_id}: the KV before position {part.start} is not there")

    def _imagined(self, token_id: int, count: int) -> Logprobs:
        """The chosen token has probability 1/2, the token ids after it 1/4, 1/8 and so on."""
        count = min(count, self._info.vocab_size)
        return Logprobs(
            chosen=-math.log(2),
            top_token_ids=[(token_id + rank) % self._info.vocab_size for rank in range(count)],
            top=[-(rank + 1) * math.log(2) for rank in range(count)],
        )

    def _next_token(self, part: Slice) -> int:
        """Depends on all tokens so far, and is never an end of sequence."""
        state = self._state(part.block_ids, part.start + len(part.token_ids))
        token_id = int.from_bytes(state[:4], "little") % self._info.vocab_size
        while token_id in self._info.eos_token_ids:
            token_id = (token_id + 1) % self._info.vocab_size
        return token_id


def _sleep_until(moment: float) -> None:
    """What it does itself is part of the time that it is to take."""
    time.sleep(max(0.0, moment - time.monotonic()))


def _chain(before: bytes, token_id: int) -> bytes:
    return hashlib.blake2b(before + token_id.to_bytes(4, "little"), digest_size=16).digest()
