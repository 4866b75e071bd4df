"""HTTP headers beyond OpenAI's."""

from __future__ import annotations

from typing import Final

TIMINGS: Final = "x-mooncake-timings"
"""1: say in the answer where the time went."""
KV_TRANSFER: Final = "x-mooncake-kv-transfer"
"""`whole`: KV moves before and after the computation, not layer by layer beside it; for comparisons."""
REQUEST_TIMEOUT: Final = "x-request-timeout"
"""Seconds that the request may take."""
