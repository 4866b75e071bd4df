"""What a model costs in bytes and operations, as its YAML (`configs/models/`) says it: the numbers of its public config.json.

Norms and biases are left out of the parameters: less than 0.1 % of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta

from mooncake_core.conductor.hardware import ELEMENT_BYTES
from mooncake_core.config.load import load_record
from mooncake_core.config.rules import Finding
from mooncake_core.config.schema import Count, Section

Dtype = Literal["float32", "float16", "bfloat16", "float8", "int8"]
Number = Annotated[int, Meta(ge=0)]
_NEEDED: Final = (
    "name", "layers", "hidden", "heads", "intermediate", "vocab",
    "mla.kv_lora_rank", "mla.rope_dim", "mla.nope_dim", "mla.value_dim",
    "experts.count", "experts.active", "experts.intermediate",
)  # fmt: skip


class Mla(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Multi-head latent attention: a token's KV is one vector for all heads (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    kv_lora_rank: Count = 1
    """The latent vector."""
    rope_dim: Number = 0
    """The key part that carries the position, shared by all heads."""
    nope_dim: Count = 1
    """The other part of a head's key."""
    value_dim: Count = 1
    """Of a head's value."""
    q_lora_rank: Number = 0
    """0: queries are not compressed."""


class Experts(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Mixture of experts in place of the dense feed-forward part."""

    count: Count = 1
    """Routed experts of a layer."""
    active: Count = 1
    """Of them for each token."""
    shared: Number = 0
    """For all tokens, beside these."""
    intermediate: Count = 1
    """Width of one expert."""
    dense_layers: Number = 0
    """The first so many layers have none."""


class ModelDescription(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A decoder-only transformer with gated feed-forward parts."""

    name: str = ""
    layers: Count = 1
    hidden: Count = 1
    heads: Count = 1
    """Of queries."""
    kv_heads: Number = 0
    """0: as many as `heads`; with `mla` it says nothing."""
    head_dim: Number = 0
    """0: hidden / heads."""
    intermediate: Count = 1
    """Width of a dense feed-forward part."""
    vocab: Count = 1
    tied_embeddings: bool = False
    dtype: Dtype = "bfloat16"
    """Of weights, and of the computation."""
    kv_dtype: Dtype = "bfloat16"
    mla: Mla | None = None
    experts: Experts | None = None

    @property
    def kv_bytes_per_token(self) -> int:
        """Of all layers: keys and values of each KV head; with MLA one latent vector and the part with the position."""
        per_layer = (
            self.mla.kv_lora_rank + self.mla.rope_dim
            if self.mla
            else 2 * (self.kv_heads or self.heads) * self._head_dim
        )
        return self.layers * per_layer * ELEMENT_BYTES[self.kv_dtype]

    @property
    def parameters(self) -> int:
        """All of them."""
        embeddings = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        return embeddings + self.layers * self._attention + self._feed_forward(all_experts=True)

    @property
    def active_parameters(self) -> int:
        """Those that one token is multiplied with in the layers: without embeddings and the output layer."""
        return self.layers * self._attention + self._feed_forward(all_experts=False)

    @property
    def weight_bytes(self) -> int:
        return self.parameters * ELEMENT_BYTES[self.dtype]

    @property
    def output_parameters(self) -> int:
        """Of the output layer, which each generated token passes."""
        return self.vocab * self.hidden

    @property
    def attention_flops_per_pair(self) -> int:
        """Of a query with one earlier position, in all layers: its score and its part of the sum, 2 per multiplication."""
        widths = self.mla.nope_dim + self.mla.rope_dim + self.mla.value_dim if self.mla else 2 * self._head_dim
        return 2 * self.layers * self.heads * widths

    @property
    def _head_dim(self) -> int:
        return self.head_dim or self.hidden // self.heads

    @property
    def _attention(self) -> int:
        """Parameters of one layer's attention."""
        if self.mla is None:
            return 2 * self.hidden * self._head_dim * (self.heads + (self.kv_heads or self.heads))
        mla = self.mla
        query_width = self.heads * (mla.nope_dim + mla.rope_dim)
        query = mla.q_lora_rank * (self.hidden + query_width) if mla.q_lora_rank else self.hidden * query_width
        latent = self.hidden * (mla.kv_lora_rank + mla.rope_dim)
        expanded = mla.kv_lora_rank * self.heads * (mla.nope_dim + mla.value_dim)
        return query + latent + expanded + self.heads * mla.value_dim * self.hidden

    def _feed_forward(self, *, all_experts: bool) -> int:
        """Parameters of all layers' feed-forward parts, or those that one token passes."""
        if self.experts is None:
            return 3 * self.layers * self.hidden * self.intermediate
        experts = self.experts
        dense = 3 * experts.dense_layers * self.hidden * self.intermediate
        passed = (experts.count if all_experts else experts.active) + experts.shared
        per_layer = 3 * self.hidden * experts.intermediate * passed + self.hidden * experts.count  # and the router
        return dense + (self.layers - experts.dense_layers) * per_layer


def load_model(path: Path) -> ModelDescription:
    """A model's description.

    Raises:
        ConfigError: everything that is wrong, with file, line and field.
    """
    return load_record(path, ModelDescription, needed=_NEEDED, rules=(_findings,))


def _findings(model: ModelDescription) -> Iterator[Finding]:
    if not model.head_dim and not model.mla and model.hidden % model.heads:
        yield Finding("head_dim", f"expected one, as hidden ({model.hidden}) is no multiple of heads ({model.heads})")
    if model.kv_heads and model.heads % model.kv_heads:
        yield Finding("kv_heads", f"expected a divisor of heads ({model.heads}), got {model.kv_heads}")
    if model.experts and model.experts.active > model.experts.count:
        yield Finding("experts.active", f"expected at most experts.count ({model.experts.count})")
    if model.experts and model.experts.dense_layers > model.layers:
        yield Finding("experts.dense_layers", f"expected at most layers ({model.layers})")
