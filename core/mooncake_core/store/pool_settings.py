"""The pool's part of the configuration, and how much longer it waits than it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

MARGIN_S: Final = 1.0
"""Added to a reader's lease and a writer's deadline before their space is touched: clocks run at different speed, and a
transfer that began in time may end a little late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Fractions are of a node's segment."""

    read_lease_s: float = 5.0
    writer_deadline_s: float = 30.0
    high_watermark: float = 0.95
    low_watermark: float = 0.85
    promote_timeout_s: float = 2.0
    quotas: Mapping[str, int | None] = field(default_factory=dict)
    """Tenant → bytes it may hold, None for any number; empty: anybody may be a tenant."""
