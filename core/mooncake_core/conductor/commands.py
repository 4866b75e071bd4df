"""What the Conductor wants done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct


class ReserveDecode(Struct, frozen=True, gc=False):
    """Ask a decode instance to hold memory; answered with ReservationGranted or ReservationRefused."""

    request_id: str
    decode: str
    prompt_tokens: int
    max_tokens: int
    deadline: float
    """The request's: nobody needs the memory after it."""
    matched_blocks: int = 0
    """Leading blocks of the prompt that its prefill will read from the pool."""


class Dispatch(Struct, frozen=True, gc=False):
    """The request goes there."""

    request_id: str
    prefill: str
    decode: str
    matched_tokens: int
    expected_ttft_s: float
    expected_tbt_s: float


class Reject(Struct, frozen=True, gc=False):
    """Admission says no: HTTP 429; or, where waiting cannot help, 400."""

    request_id: str
    reason: str
    retry_after_s: float
    hopeless: bool = False
    cause: Literal["ttft", "tbt", "memory", "share"] = "memory"
    """The objective that would be missed, or what there is not enough of: share, of what its tenant may hold."""
    stage: Literal["arrival", "decode"] = "arrival"
    """decode: its prefill has ended, in vain."""


class Unavailable(Struct, frozen=True, gc=False):
    """Nobody can serve this: HTTP 503."""

    request_id: str
    reason: str
    retry_after_s: float


class ReleaseDecode(Struct, frozen=True, gc=False):
    """The memory held for a request is not needed any more. May come for what was released already."""

    request_id: str
    decode: str


class CopyBlocks(Struct, frozen=True, gc=False):
    """A node is to have these blocks as well, which other nodes have: so what is asked for much spreads by itself (FAST'25,
    section 4.2)."""

    node: str
    keys: Sequence[bytes]


class SwitchRole(Struct, frozen=True, gc=False):
    """An instance is to finish what it has, and to join again in this role."""

    instance: str
    role: Literal["prefill", "decode"]


Command = ReserveDecode | Dispatch | Reject | Unavailable | ReleaseDecode | CopyBlocks | SwitchRole
