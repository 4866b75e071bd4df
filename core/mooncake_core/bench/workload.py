"""What `mooncake bench serve` sends, and when. Pure: all of it follows from the settings."""

from __future__ import annotations

import hashlib
import itertools
import random
from typing import Final, Literal

from msgspec import Struct

WORDS: Final = tuple(
    "the king of a city and all his people went out to build file house class by night with one object that "  # noqa: SIM905
    "returns value from river land module day men said unto them when name list found no string morning in".split()
)
TOKENS_PER_WORD: Final = 1.4
"""A guess, for servers that do not count a prompt's tokens."""


class ServeSettings(Struct, frozen=True, kw_only=True):
    """One load on one server."""

    url: str
    model: str = ""
    """Empty: the first one the server lists."""
    requests: int = 100
    concurrency: int = 8
    """Closed loop: so many requests are under way at any time."""
    rate: float | None = None
    """Open loop: so many requests/s are sent, whatever becomes of them; None for the closed loop."""
    arrivals: Literal["poisson", "constant"] = "poisson"
    """Of the open loop."""
    prompt_tokens: int = 256
    """About so many, as the server counts them."""
    output_tokens: int = 32
    shared_prefix: float = 0.5
    """Share of each prompt that is the same in all."""
    seed: int = 0
    """Of prompts, arrivals and sampling."""
    greedy: bool = True
    """Temperature 0; otherwise 1, with a seed of its own per request."""
    warm: bool = False
    """All prompts are sent once before, unmeasured."""
    cache_salt: str = ""
    """Separates this run's cache from those of others, where the server takes it."""
    timeout_s: float = 120.0
    """Of a request, from first byte sent to last byte received."""
    slo_ttft_s: float | None = None
    slo_tbt_s: float | None = None
    kv_transfer: Literal["layers", "whole"] = "layers"
    """How a Mooncake gateway has KV moved: layer by layer beside the computation, or all of it before and after."""
    keep_outputs: bool = False
    """Keep what was generated."""


def make_prompts(settings: ServeSettings, tokens_per_word: float) -> list[str]:
    """Prompts of words, drawn by the seed; all begin alike for the shared share of their length."""
    draw = random.Random(settings.seed)
    num_words = max(1, round(settings.prompt_tokens / tokens_per_word))
    num_shared = round(num_words * settings.shared_prefix)
    shared = _words(draw, num_shared)
    return [" ".join([*shared, *_words(draw, num_words - num_shared)]) for _ in range(settings.requests)]


def _words(draw: random.Random, count: int) -> list[str]:
    """Each word as often as any other, or once more: words differ in tokens, prompts should not."""
    full, rest = divmod(count, len(WORDS))
    words = [*WORDS * full, *draw.sample(WORDS, rest)]
    draw.shuffle(words)
    return words


def arrival_times(settings: ServeSettings) -> list[float]:
    """Seconds after the start at which an open loop sends each request; the first at once.

    Raises:
        ValueError: the settings have no rate.
    """
    if settings.rate is None:
        raise ValueError("expected a rate for an open loop, got none")
    # Another stream than that of the prompts: the same prompts may be sent at other times.
    draw = random.Random(f"arrivals {settings.seed}")
    rate = settings.rate
    gaps = (
        1 / rate if settings.arrivals == "constant" else draw.expovariate(rate) for _ in range(settings.requests - 1)
    )
    return list(itertools.accumulate(gaps, initial=0.0))


def prompt_hash(prompt: str) -> str:
    """Names a prompt in saved outputs."""
    return hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()
