"""What an engine is. A plugin author reads this page and subclasses `Engine`.

An engine owns KV memory cut into blocks and computes over *slices*: some consecutive tokens of one sequence, whose
earlier KV lies in blocks already. A prefill chunk is a slice of many tokens, a decode step one of a single token, and
both may be in one batch. Which slices are computed when is decided by `batching`, not by the engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mooncake_core.kvcache.layout import KVLayout
from mooncake_core.wire.messages.membership import CostHint
from mooncake_core.wire.messages.serving import Logprobs, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What a role gives an engine when it makes it."""

    model_path: str
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    dtype: str = "auto"
    """auto (float32 on CPU, else the model's own), float32, float16, bfloat16."""
    block_tokens: int = 32
    kv_memory_bytes: int = 512 << 20
    threads: int = 0
    """Compute threads; 0 leaves the choice to the engine."""
    cost: CostHint | None = None
    """How long its computations take, where that is known already: it need not time any."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The engine's own settings from the YAML; it refuses what it does not know with ConfigError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What was loaded."""

    model_name: str
    fingerprint: bytes
    """16 bytes: digest of weights, model config, dtype, KV layout, TP shape and block_tokens. Independent of where the
    model's folder lies."""
    layout: KVLayout
    num_blocks: int
    max_context_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    cost: CostHint


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Consecutive tokens of one sequence to compute now. Its id is never given to another sequence: an engine may keep what
    it knows of one.

    token_ids[i] stands at position start + i. block_ids cover positions 0 .. start + len(token_ids) - 1, in order. With
    `sampling`, the token after the last position is chosen and returned.
    """

    sequence_id: int
    token_ids: Sequence[int]
    start: int
    block_ids: Sequence[int]
    sampling: Sampling | None = None


class LayerWatcher(Protocol):
    """Follows a step layer by layer, in the thread that computes."""

    def before_layer(self, layer: int) -> None:
        """The layer is about to read the KV of earlier positions; may wait until it is there."""

    def layer_written(self, layer: int) -> None:
        """The layer's KV of all slices lies in their blocks; later layers are still to come. Called once per layer, in
        order."""


class Engine(ABC):
    """Computes prefill chunks and decode steps over paged KV memory. Called from one thread at a time."""

    @abstractmethod
    def __init__(self, settings: EngineSettings) -> None:
        """Loads the model.

        Raises:
            ModelNotFound: no such folder, or no model in it.
            ModelTooLarge: weights and KV memory exceed what the device has; shows the arithmetic.
            PluginUnavailable: a library is missing; says what to install.
            ConfigError: an option the engine does not know.
        """

    @property
    @abstractmethod
    def info(self) -> EngineInfo:
        """What was loaded; constant."""

    @property
    @abstractmethod
    def kv_memory(self) -> memoryview:
        """Host memory of num_blocks * block_bytes bytes (format "B", writable): block i lies at i * block_bytes, in the
        layout of `info`. Where the engine computes elsewhere (GPU), this is staging memory; see stage_in, stage_out."""

    @property
    def kv_descriptor(self) -> int | None:
        """Descriptor of the file that kv_memory maps from its beginning, where it has one: processes of the same host
        then reach it without a socket (transfer.shared_memory.SharedMemory)."""
        return None

    @abstractmethod
    def stage_in(self, block_ids: Sequence[int], layer: int | None = None) -> None:
        """Makes the bytes that lie in kv_memory the blocks' KV, of one layer or of all. Nothing to do where the engine
        computes in kv_memory."""

    @abstractmethod
    def stage_out(self, block_ids: Sequence[int]) -> None:
        """Makes the blocks' KV appear in kv_memory. Nothing to do where the engine computes in kv_memory."""

    @abstractmethod
    def step(self, slices: Sequence[Slice], watcher: LayerWatcher | None = None) -> list[int | None]:
        """Computes all slices in one batch and writes their KV to their blocks.

        With a watcher, KV streams by layer: it is told before a layer reads the blocks, and when the layer's new KV lies
        in them, in kv_memory too.

        Returns one token per slice with `sampling`, None for the others. Blocks must not be shared for writing.

        Raises:
            EngineError: the computation failed; the KV of these slices is undefined.
        """

    @property
    def logprobs(self) -> Mapping[int, Logprobs]:
        """Of the last step: index of the slice to log probabilities, for each slice whose sampling asks for them. An engine
        that does not know any returns none, and the gateway refuses such requests."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Frees memory. Idempotent."""
