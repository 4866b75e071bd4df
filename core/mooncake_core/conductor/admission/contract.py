"""What an admission is: it says which requests are turned away, when they arrive and when their prefill has ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

from mooncake_core.conductor.instances import Assigned, DecodeInstance
from mooncake_core.conductor.shares import EVERYTHING, Allowance

Cause = Literal["ttft", "tbt", "memory", "share"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionSettings:
    """The scheduler's part of the configuration, as far as admissions use it."""

    ttft_slo_s: float | None = None
    """None: no objective, nobody is turned away for it."""
    tbt_slo_s: float | None = None
    decode_time_s: float | None = None
    """How long each request is assumed to decode; None: the mean of those that have ended."""
    headroom: float = 0.0
    """Share of the time between tokens that is kept free."""
    shed_weight: float = 64.0
    """How much more of a request counts than it takes where the objective is used up and all others are refused."""


class Asking(Struct, frozen=True, gc=False):
    """A request as an admission sees it."""

    prompt_tokens: int
    max_tokens: int
    ttft_s: float
    """Predicted."""
    own_s: float = 0.0
    """The part of it that its prefill instance spends on this request; the rest is waiting for others."""
    allowance: Allowance = EVERYTHING
    """What of the objectives it may use up at its arrival; less than all where its tenant holds more than its share."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is turned away: HTTP 429."""

    cause: Cause
    reason: str
    retry_after_s: float


class Admission(ABC):
    """What it learns from requests that end is its own business; instances it only reads."""

    checks_decode = False
    """It may refuse a request whose prefill has ended: the first token waits for its word."""

    def __init__(self, settings: AdmissionSettings) -> None:
        self.settings = settings

    @abstractmethod
    def at_arrival(self, request: Asking, decode: DecodeInstance, now: float) -> Refusal | None:
        """None admits it. `decode` is where it would go."""

    def at_decode(self, request: Asking, decode: DecodeInstance, now: float) -> Refusal | None:
        """Its prefill has ended: may it join what decodes there?"""
        return None

    def decoded(self, assigned: Assigned, output_tokens: int, now: float) -> None:  # noqa: B027 - most learn nothing
        """A request has got all its tokens, so many of them."""
