"""The torch engine, as roles see it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mooncake_core.errors import ConfigError, EngineError, ModelError, ModelTooLarge, PluginUnavailable
from mooncake_core.inference.contract import Engine, EngineInfo, EngineSettings, LayerWatcher, Slice
from mooncake_core.inference.models import eos_token_ids, read_json
from mooncake_core.inference.torch.weights import fingerprint, parameter_count, weight_files
from mooncake_core.kvcache.layout import KVLayout
from mooncake_core.store.node import available_memory_bytes
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.units import format_size
from mooncake_core.wire.messages.membership import CostHint
from mooncake_core.wire.messages.serving import Logprobs, Sampling

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
try:
    import torch
    import transformers
    from safetensors import SafetensorError
    from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
except ImportError as error:
    raise PluginUnavailable(
        f"{error.name or error} is missing; install the serving extra: pip install 'mooncake-toolkit[serve]'"
    ) from error

from mooncake_core.inference.torch import attention, sampling
from mooncake_core.inference.torch.decode_graphs import DecodeGraphs
from mooncake_core.inference.torch.decode_window import DecodeWindow
from mooncake_core.inference.torch.flat_model import Forward, fastest_forward
from mooncake_core.inference.torch.staging import HostMirror, mirror_of

RESERVE_BYTES: Final = 256 << 20
"""For activations and the libraries themselves."""
CALIBRATION_TOKENS: Final = 128
CHECKED_TOKENS: Final = 5
WINDOW_SHARE: Final = 0.5
"""Of the KV memory's size, for the decode window (CPU only)."""
GRAPHS_SHARE: Final = 0.25
GRAPHS_BYTES: Final = 256 << 20
"""For the memory of decode graphs (GPU only): of the KV memory's size, and besides."""

_NOT_ASKED: Final = Sampling(temperature=0)


class TorchEngine(Engine):
    """Any causal language model that transformers runs with grouped-query or multi-head attention."""

    def __init__(self, settings: EngineSettings) -> None:
        if settings.options:
            raise ConfigError(f"engine.options: the torch engine has none, got {', '.join(sorted(settings.options))}")
        _quiet()
        folder = Path(settings.model_path)
        files = weight_files(folder)
        self._device = _device(settings.device)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        attention.choose_kernels(self._device)
        config = _load_config(folder)
        dtype = _dtype(settings.dtype, config, self._device)
        layout = _layout(config, str(dtype).removeprefix("torch."), settings.block_tokens)
        num_blocks = settings.kv_memory_bytes // layout.block_bytes
        _check_memory(files, layout, num_blocks, settings.kv_memory_bytes, self._device)
        self._windows = _windows(config)
        self._model = _load_model(folder, dtype, self._device)
        self._memory = SharedMemory("kv", num_blocks * layout.block_bytes)
        self._view = self._memory.view
        self._logprobs: dict[int, Logprobs] = {}
        self._kv, self._mirror = self._make_kv(layout, num_blocks, dtype)
        self._window = self._make_window(settings.kv_memory_bytes)
        self._forward = fastest_forward(self._model, attention.paged_attention, self._hidden_of)
        self._graphs = self._make_graphs(_beside_kv_bytes(settings.kv_memory_bytes, layout, self._device))
        self._info = EngineInfo(
            model_name=folder.name,
            fingerprint=fingerprint(files, read_json(folder / "config.json"), layout),
            layout=layout,
            num_blocks=num_blocks,
            max_context_tokens=int(config.max_position_embeddings),
            vocab_size=int(config.vocab_size),
            eos_token_ids=eos_token_ids(folder),
            cost=settings.cost or self._calibrate(layout, num_blocks),
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
        if self._mirror is not None:
            self._mirror.stage_in(block_ids, layer)

    def stage_out(self, block_ids: Sequence[int]) -> None:
        if self._mirror is not None:
            self._mirror.stage_out(block_ids)

    def step(self, slices: Sequence[Slice], watcher: LayerWatcher | None = None) -> list[int | None]:
        departures = None
        if watcher is not None and self._mirror is not None:
            departures = watcher = self._mirror.departures(slices, watcher)
        try:
            with torch.inference_mode():
                tokens = self._step(slices, watcher)
                if departures is not None:
                    departures.finish()
                return tokens
        except RuntimeError as error:
            raise EngineError(f"the model failed on a batch of {len(slices)} slices: {error}") from error

    @property
    def logprobs(self) -> Mapping[int, Logprobs]:
        return self._logprobs

    def close(self) -> None:
        # The memory itself is freed with the last view of it: a transfer region may still hold one.
        if self._mirror is not None:
            self._mirror.close()
        self._kv = self._mirror = self._model = self._window = self._graphs = self._forward = None  # type: ignore[assignment]

    def _make_kv(self, layout: KVLayout, num_blocks: int, dtype: Any) -> tuple[Any, HostMirror | None]:
        """Blocks to compute in [block, layer, k|v, token, kv_head, dim]; where they lie on a GPU one more, for the graphs,
        and their copy on the host."""
        shape = (num_blocks, layout.num_layers, 2, layout.block_tokens, layout.num_kv_heads, layout.head_dim)
        host = torch.frombuffer(self._view, dtype=dtype).view(shape)
        if self._device.type == "cpu":
            return host, None
        kv = torch.zeros((num_blocks + 1, *shape[1:]), dtype=dtype, device=self._device)
        return kv, mirror_of(kv, host)

    def _make_window(self, kv_memory_bytes: int) -> DecodeWindow | None:
        """On a CPU, where gathering blocks costs more than computing. A GPU has no memory to spare for it."""
        return DecodeWindow(self._kv, int(WINDOW_SHARE * kv_memory_bytes)) if self._device.type == "cpu" else None

    def _make_graphs(self, limit_bytes: int) -> DecodeGraphs | None:
        """On a GPU, where launching a decode step's operations takes longer than computing them."""
        if self._device.type != "cuda":
            return None
        return DecodeGraphs(
            self._kv,
            self._forward,
            self._model.get_output_embeddings(),
            windows=self._windows,
            vocab_size=self._model.get_output_embeddings().weight.shape[0],
            limit_bytes=limit_bytes,
        )

    def _hidden_of(self, forward: Forward) -> Any:
        """Hidden states of a short prompt, its KV in the first blocks."""
        block_tokens = self._kv.shape[3]
        num_tokens = min(CHECKED_TOKENS, len(self._kv) * block_tokens)
        blocks = list(range(-(-num_tokens // block_tokens)))
        prompt = Slice(sequence_id=0, token_ids=list(range(num_tokens)), start=0, block_ids=blocks)
        with torch.inference_mode():
            return self._run(attention.Plan(self._kv, [prompt], windows=self._windows, watcher=None), forward)

    def _run(self, plan: attention.Plan, forward: Forward) -> Any:
        """Hidden states [tokens, hidden] of a step."""
        attention.begin(plan)
        try:
            return forward(plan.input_ids, plan.position_ids)[0]
        finally:
            attention.end()

    def _step(self, slices: Sequence[Slice], watcher: LayerWatcher | None) -> list[int | None]:
        self._logprobs = {}
        if self._graphs is not None and watcher is None and all(len(part.token_ids) == 1 for part in slices):
            found = self._graphs.run(slices)
            if found is not None:
                return self._sample(slices, range(len(slices)), *found)
        plan = attention.Plan(self._kv, slices, windows=self._windows, watcher=watcher, window=self._window)
        hidden = self._run(plan, self._forward)
        rows = [row for row, index in zip(plan.last_rows, plan.order, strict=True) if slices[index].sampling]
        if not rows:
            return [None] * len(slices)
        logits = self._model.get_output_embeddings()(hidden[rows]).float()
        return self._sample(slices, [index for index in plan.order if slices[index].sampling], logits)

    def _sample(
        self, slices: Sequence[Slice], indexes: Sequence[int], logits: Any, best: Any = None
    ) -> list[int | None]:
        """Tokens of the slices at these indexes, whose logits are [indexes, vocabulary]; None for the others. `best` may
        be known: the most probable tokens."""
        samplings = [slices[index].sampling or _NOT_ASKED for index in indexes]
        positions = [slices[index].start + len(slices[index].token_ids) for index in indexes]
        tokens = sampling.choose(logits, samplings, positions, best)
        logprobs = sampling.logprobs(logits, samplings, tokens)
        self._logprobs = {indexes[row]: found for row, found in logprobs.items()}
        results: list[int | None] = [None] * len(slices)
        for index, token_id in zip(indexes, tokens, strict=True):
            if slices[index].sampling:
                results[index] = token_id
        return results

    def _calibrate(self, layout: KVLayout, num_blocks: int) -> CostHint:
        """Times a prefill and a decode step, so that the scheduler begins with numbers of this machine."""
        tokens = min(CALIBRATION_TOKENS, num_blocks * layout.block_tokens - 1)
        blocks = list(range(layout.blocks_for(tokens + 1)))
        prompt = Slice(sequence_id=0, token_ids=[0] * tokens, start=0, block_ids=blocks, sampling=Sampling())
        token = Slice(sequence_id=0, token_ids=[0], start=tokens, block_ids=blocks, sampling=Sampling())
        for first in ([prompt], [token]):
            self._timed(first)
        prefill_s, step_s = self._timed([prompt]), self._timed([token])
        return CostHint(
            prefill_base_s=step_s,
            prefill_per_token_s=max(1e-7, (prefill_s - step_s) / tokens),
            prefill_per_token2_s=0.0,
            step_base_s=step_s * 0.8,
            step_per_sequence_s=step_s * 0.2,
        )

    def _timed(self, slices: Sequence[Slice]) -> float:
        started = time.perf_counter()
        self.step(slices)
        return time.perf_counter() - started


def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    AttentionInterface.register(attention.NAME, attention.attention_interface)
    AttentionMaskInterface.register(attention.NAME, lambda *_, **__: None)


def _device(name: str) -> Any:
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(chosen)
    except RuntimeError as error:
        raise ConfigError(f"engine.device: expected auto, cpu or cuda:N, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"engine.device: {name} was asked for, but torch finds no CUDA device here")
    return device


def _load_config(folder: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}/config.json is not understood by transformers: {error}") from error
    config = config.get_text_config()
    served = getattr(config, "num_key_value_heads", None) and getattr(config, "max_position_embeddings", None)
    layers = set(getattr(config, "layer_types", None) or ())
    odd = layers - {"full_attention", "sliding_attention"}
    reason = ""
    if odd:
        reason = f"layers of kind {', '.join(sorted(odd))} keep no K and V per token"
    elif getattr(config, "kv_lora_rank", None):
        reason = "its attention keeps a latent vector per token, not K and V"
    elif getattr(config, "is_encoder_decoder", False):
        reason = "it is an encoder and a decoder"
    elif not served:
        reason = "its config.json lacks num_key_value_heads or max_position_embeddings, which newer families have"
    if reason:
        raise ModelError(f"{folder}: models of type {config.model_type} cannot be served by the torch engine: {reason}")
    return config


def _dtype(name: str, config: Any, device: Any) -> Any:
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cpu":
        return torch.float32
    return config.dtype if config.dtype in (torch.float16, torch.bfloat16, torch.float32) else torch.bfloat16


def _layout(config: Any, dtype: str, block_tokens: int) -> KVLayout:
    return KVLayout(
        num_layers=config.num_hidden_layers,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        dtype=dtype,
        block_tokens=block_tokens,
    )


def _windows(config: Any) -> list[int | None]:
    """Sliding window of each layer, None for full attention."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return [window if kind == "sliding_attention" else None for kind in kinds]
    return [window if getattr(config, "use_sliding_window", True) else None] * config.num_hidden_layers


def _beside_kv_bytes(kv_bytes: int, layout: KVLayout, device: Any) -> int:
    """What decode steps need: the window on a CPU; on a GPU graphs, and the block that is nobody's."""
    if device.type == "cpu":
        return int(WINDOW_SHARE * kv_bytes)
    return GRAPHS_BYTES + int(GRAPHS_SHARE * kv_bytes) + layout.block_bytes


def _check_memory(files: list[Path], layout: KVLayout, num_blocks: int, kv_bytes: int, device: Any) -> None:
    if num_blocks < 1:
        raise ModelTooLarge(
            f"engine.kv_memory: {format_size(kv_bytes)} does not hold one block of {format_size(layout.block_bytes)}"
        )
    weights = parameter_count(files) * layout.element_bytes
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_bytes()
    beside = _beside_kv_bytes(kv_bytes, layout, device)
    needed = weights + kv_bytes + beside + RESERVE_BYTES
    if needed > available:
        raise ModelTooLarge(
            f"the model does not fit {device}: {format_size(weights)} of weights ({layout.dtype}) + "
            f"{format_size(kv_bytes)} of KV memory + {format_size(beside)} for decode steps + "
            f"{format_size(RESERVE_BYTES)} reserve = {format_size(needed)}, "
            f"{format_size(available)} available; lower engine.kv_memory, or choose a smaller dtype or model"
        )


def _load_model(folder: Path, dtype: Any, device: Any) -> Any:
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention.NAME,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from error
    _check_complete(folder, found)
    return model.to(device).eval()


def _check_complete(folder: Path, found: Mapping[str, Any]) -> None:
    """transformers fills weights that are missing with random numbers."""
    missing = sorted(found["missing_keys"])
    mismatched = sorted(str(entry[0]) for entry in found["mismatched_keys"])
    for names, problem in ((missing, "has no weights for"), (mismatched, "has weights of another shape for")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(
                f"{folder} {problem} {', '.join(names[:3])}{more}: the download is incomplete, or config.json is another model's"
            )
