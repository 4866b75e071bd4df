"""What is to be generated, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import Struct

from mooncake_core.wire.messages.membership import ModelOffer
from mooncake_core.wire.messages.serving import FinishReason, Logprobs, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What is to be generated."""

    request_id: str
    model: ModelOffer
    token_ids: Sequence[int]
    sampling: Sampling
    tenant: str = ""
    cache_salt: str = ""
    store: bool = True
    """The prompt's new blocks go into the pool."""
    priority: int = 0
    """Lower is earlier."""
    timeout_s: float
    arrived: float = 0.0
    """time.monotonic() when the request's body was there."""
    by_layer: bool = True
    """KV moves layer by layer, beside the computation."""


class Timings(Struct, frozen=True, kw_only=True):
    """Where the time of a request went, as the instances say; seconds."""

    queued_s: float = 0.0
    """Waiting for KV memory, and for the engine, in the prefill instance."""
    fetched_s: float = 0.0
    """Until the prefix was there, as far as the computation needed it to begin."""
    computed_s: float = 0.0
    """Prefill."""
    exposed_s: float | None = None
    """Exposed transfer time: from the end of the last layer until the decode instance had all KV."""
    attempts: int = 1
    """More than one: an instance was lost on the way."""


UNKNOWN = Timings()


@dataclass(frozen=True, slots=True)
class Step:
    """New tokens, and what is known by then: how much of the prompt came from the cache, and where the time went."""

    token_ids: list[int]
    finish_reason: FinishReason | None
    cached_tokens: int
    timings: Timings = UNKNOWN
    logprobs: Sequence[Logprobs] = ()
    """One per token, where the sampling asks for them."""
    received: float = 0.0
    """time.monotonic() when they came."""
    dispatched: float | None = None
    """With an attempt's first token: time.monotonic() when the prompt was sent to the prefill instance."""
