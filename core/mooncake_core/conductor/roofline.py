"""How long an instance takes, from what its model needs and what its hardware has (F section 2 and table 1; R section 5).

Prefill is bound by operations: linear in the new tokens, and attention over all pairs of a new position and an earlier one.
A decode step is bound by memory, which passes the weights once and the KV of all contexts; where the batch is so large that
the multiplications take longer than the weights, by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from mooncake_core.conductor.hardware import ELEMENT_BYTES, Hardware
from mooncake_core.conductor.model_shape import ModelDescription
from mooncake_core.errors import ModelTooLarge
from mooncake_core.units import format_size
from mooncake_core.wire.messages.membership import CostHint

HINT_BATCH: Final = 128
"""A CostHint is linear in the batch: it is exact here, and at an empty batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Shares of the published peaks that are reached, and what is on top; see docs/decisions/0036."""

    prefill: float = 0.5
    """Of operations, with tensor parallelism over the devices of one host."""
    decode: float = 0.5
    """Of operations, in a decode step."""
    memory: float = 0.8
    """Of device memory's bandwidth."""
    network: float = 0.87
    """Of the NICs: F figure 12 shows 87 GB/s of 4 x 200 Gbps."""
    layer_overhead_s: float = 30e-6
    """Of a step, per layer: two all-reduces among the devices, and launches that nothing hides."""
    memory_reserve: float = 0.1
    """Share of device memory for activations and the runtime."""


class Roofline:
    """Times of one instance, in seconds; `hint()` is their linear form, by which the live scheduler begins."""

    def __init__(self, model: ModelDescription, hardware: Hardware, efficiency: Efficiency | None = None) -> None:
        """
        Raises:
            ModelTooLarge: the weights leave no room for KV; the message has the arithmetic.
            ConfigError: the hardware does not compute with the model's element type.
        """
        self.model = model
        self.hardware = hardware
        self.efficiency = efficiency or Efficiency()
        self._flops = hardware.flops(model.dtype)
        self._overhead_s = model.layers * self.efficiency.layer_overhead_s
        self.kv_memory_bytes = kv_memory_bytes(model, hardware, self.efficiency)

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens whose KV the devices hold beside the weights."""
        return self.kv_memory_bytes // self.model.kv_bytes_per_token

    def prefill_s(self, prompt_tokens: int, matched_tokens: int) -> float:
        """To compute a prompt of which a prefix is in place."""
        pairs = (prompt_tokens**2 - matched_tokens**2) / 2  # causal: a position sees those before it
        linear = 2 * self.model.active_parameters * (prompt_tokens - matched_tokens)
        operations = linear + self.model.attention_flops_per_pair * pairs
        return self._overhead_s + operations / (self._flops * self.efficiency.prefill)

    def step_s(self, batch: int, context_tokens: int) -> float:
        """A decode step of `batch` sequences with so many tokens of context together. Linear in the context."""
        return (
            self._overhead_s + max(self._weights_s(batch), batch * self._multiply_s) + context_tokens * self._context_s
        )

    def hint(self) -> CostHint:
        """The linear form; decode is exact at HINT_BATCH and below it never too fast by more than the weights allow."""
        prefill_flops = self._flops * self.efficiency.prefill
        empty_s = self.step_s(0, 0)
        return CostHint(
            prefill_base_s=self._overhead_s,
            prefill_per_token_s=2 * self.model.active_parameters / prefill_flops,
            prefill_per_token2_s=self.model.attention_flops_per_pair / 2 / prefill_flops,
            step_base_s=empty_s,
            step_per_sequence_s=(self.step_s(HINT_BATCH, 0) - empty_s) / HINT_BATCH,
            step_per_context_token_s=self._context_s,
            fetch_bytes_per_s=self.hardware.nic_bytes_per_s * self.efficiency.network,
            load_bytes_per_s=self.hardware.disk_bytes_per_s or CostHint().load_bytes_per_s,
        )

    @cached_property
    def _memory_bytes_per_s(self) -> float:
        return self.hardware.memory_bytes_per_s * self.efficiency.memory

    @cached_property
    def _multiply_s(self) -> float:
        """Of one sequence's token."""
        parameters = self.model.active_parameters + self.model.output_parameters
        return 2 * parameters / (self._flops * self.efficiency.decode)

    @cached_property
    def _context_s(self) -> float:
        return self.model.kv_bytes_per_token / self._memory_bytes_per_s

    def _weights_s(self, batch: int) -> float:
        """Of a mixture of experts, those that a batch is expected to touch if experts are equally likely."""
        model = self.model
        rarely = 0.0
        if model.experts is not None:
            experts = model.experts
            routed = 3 * model.hidden * experts.intermediate * experts.count * (model.layers - experts.dense_layers)
            rarely = routed * (1 - experts.active / experts.count) ** max(batch, 1)
        read = model.parameters - rarely - (0 if model.tied_embeddings else model.vocab * model.hidden)
        return read * ELEMENT_BYTES[model.dtype] / self._memory_bytes_per_s


def kv_memory_bytes(model: ModelDescription, hardware: Hardware, efficiency: Efficiency) -> int:
    """Device memory for KV beside the weights, which are spread over all devices of the host.

    Raises:
        ModelTooLarge: there is none; the message has the arithmetic.
    """
    usable = int(hardware.memory_bytes * (1 - efficiency.memory_reserve))
    left = usable - model.weight_bytes
    if left < model.kv_bytes_per_token:
        raise ModelTooLarge(
            f"{model.name} does not fit {hardware.name}: {model.parameters / 1e9:.1f}e9 parameters in {model.dtype} are "
            f"{format_size(model.weight_bytes)}, {hardware.devices} x {format_size(hardware.device_memory)} less "
            f"{efficiency.memory_reserve:.0%} for activations are {format_size(usable)}: "
            f"{format_size(-left)} too few; take more devices, larger ones, or a smaller dtype"
            if left < 0
            else f"{model.name} leaves {left} bytes for KV on {hardware.name}, a token takes {model.kv_bytes_per_token}"
        )
    return left
