"""The load of a simulated cluster over time."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct


class Sample(Struct, frozen=True, kw_only=True):
    """One moment of a cluster."""

    at_s: float
    waiting: int
    """Requests that wait for a prefill."""
    decoding: int
    """Requests that get tokens, or are about to."""
    prefill_load: float
    """Expected seconds until a new request of no length would have its turn, mean over instances, over the objective."""
    decode_load: float
    """Duration of a decode step, mean over instances, over the objective."""
    network_load: float
    """Share of outgoing bandwidth in use, mean over nodes."""
    rejected: int
    """Until now."""
    pool_blocks: int


def mean(values: Sequence[float]) -> float:
    """0 where there are none."""
    return sum(values) / len(values) if values else 0.0
