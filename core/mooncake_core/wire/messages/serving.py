"""A request's way: placed by the master, prefilled in one instance, decoded in another."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from mooncake_core.wire.messages.membership import ModelOffer
from mooncake_core.wire.messages.memory import SegmentDescriptor

FinishReason = Literal["stop", "length"]


class Sampling(Struct, frozen=True, kw_only=True, gc=False):
    """How tokens are chosen. The generator is keyed by (seed, position), so a sequence continues anywhere."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    seed: int = 0
    max_tokens: int = 16
    ignore_eos: bool = False
    stop_token_ids: list[int] = []
    logprobs: int = -1
    """Report log probabilities: of the chosen token and of so many most probable ones; -1 is none."""


class Logprobs(Struct, frozen=True, kw_only=True, gc=False):
    """Natural logarithms of the model's probabilities where a token was chosen, before temperature, top_k and top_p."""

    chosen: float
    top_token_ids: list[int] = []
    """The most probable tokens, the first one first."""
    top: list[float] = []
    """Theirs."""


class DescribeModels(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Which models can be served now?"""


class Models(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The models that have at least one prefill and one decode instance."""

    models: list[ModelOffer]


class Place(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The gateway asks where a request shall run. Answered with Placed, or refused: rejected (429), unavailable (503)."""

    request_id: str
    model: str
    fingerprint: bytes
    """That the block keys were made for: KV of another one is of no use."""
    prompt_tokens: int
    max_tokens: int
    block_keys: list[bytes]
    """Keys of the prompt's full blocks that may be reused: at most floor((prompt_tokens - 1) / block_tokens)."""
    tenant: str = ""
    priority: int = 0
    """Lower is earlier."""
    avoid: list[str] = []
    """Instances that failed this request a moment ago: to be chosen only where there is no other."""
    deadline_s: float = 600.0
    resumed: bool = False
    """Tokens were sent to the client already."""


class Reservation(Struct, frozen=True, kw_only=True, gc=False):
    """Memory that a decode instance holds for one sequence. Its block i lies at block_offsets[i] of `memory`.

    The descriptor admits writes to just these blocks and is withdrawn when the reservation ends, so that a late write
    of a cancelled prefill cannot land.
    """

    reservation_id: int
    memory: SegmentDescriptor
    block_offsets: list[int]


class Placed(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The Conductor's decision, with memory reserved at the decode instance."""

    request_id: str
    prefill: str
    prefill_address: str
    decode: str
    decode_address: str
    reservation: Reservation
    matched_tokens: int
    """Of the prompt, to be read from the pool."""
    expected_ttft_s: float
    expected_tbt_s: float
    checked_at_decode: bool = False
    """The first token waits for the answer to PrefillEnded, which may be that the request is rejected."""


class Reserve(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Master to decode: hold memory for a sequence of so many tokens, prompt and answer. Error: no_space."""

    request_id: str
    prompt_tokens: int
    max_tokens: int
    ttl_s: float


class Reserved(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The memory held."""

    reservation: Reservation


class Release(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """To decode: the reservation or the running sequence is not needed any more. Repeating it is harmless."""

    request_id: str


class Prefill(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Gateway to prefill: compute the prompt's KV, write it to the reserved memory, choose the first token."""

    request_id: str
    token_ids: list[int]
    block_keys: list[bytes]
    """Keys of the prompt's full blocks that may be read from the pool or put there, in order."""
    max_cached_blocks: int
    """How many of them are to be read from the pool, as the Conductor decided: beyond that recomputing is cheaper."""
    sampling: Sampling
    decode_address: str
    reservation: Reservation
    priority: int = 0
    """Lower is earlier."""
    by_layer: bool = True
    """Move KV layer by layer beside the computation; else all of it before and after."""


class Prefilled(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The first token, sent as soon as it is known. Seconds are durations on the prefill instance."""

    token_id: int
    finish_reason: FinishReason | None
    cached_tokens: int
    queued_s: float
    fetched_s: float
    computed_s: float
    logprobs: Logprobs | None = None
    cached_tokens_by_tier: dict[str, int] = {}
    """By where their blocks lay: dram, or the kind of a tier."""


class KVArrived(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Prefill to decode: all KV of the prompt is written, or, with `error`, will never be."""

    request_id: str
    reservation_id: int
    error: str = ""
    computed_at_s: float = 0.0
    """When the last layer was computed, by the prefill host's time.time()."""


class AskKV(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Gateway to decode: has the KV arrived? Asked where the prefill instance seems to be lost."""

    request_id: str
    reservation_id: int


class KVState(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Of one request's KV in a decode instance."""

    arrived: bool
    """All of it is there, or it is known that it will never be: then the stream of tokens says so."""


class Decode(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Gateway to decode: continue after the first token, once the KV has arrived. Answered with a stream of
    Tokens, which ends with the one that has the finish reason."""

    request_id: str
    reservation_id: int
    prompt_tokens: int
    first_token_id: int
    sampling: Sampling
    priority: int = 0
    """Lower is earlier."""


class Tokens(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """New tokens of a sequence; the stream's last message carries the finish reason."""

    token_ids: list[int]
    finish_reason: FinishReason | None = None
    exposed_s: float | None = None
    """In a stream's first message: how long after the last layer's end all KV was there, the exposed transfer time."""
    logprobs: list[Logprobs] = []
    """One per token, where they were asked for."""


class PrefillEnded(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Gateway to master: the first token is there. Answered with Done; or refused: rejected (429), where it is checked."""

    request_id: str
    cached_tokens: int
    computed_s: float
    finished: bool = False
    """It is the last one too."""
    cached_tokens_by_tier: dict[str, int] = {}
    """As in Prefilled."""


class RequestEnded(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Gateway to master: nothing of the request runs any more."""

    request_id: str
    released: bool = False
    """The decode instance has come to the end, and let the memory go."""
    output_tokens: int = 0
    """Of the whole answer, if it has come to its end."""
