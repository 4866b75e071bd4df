"""The formats of published traces, one per module."""

from __future__ import annotations

from typing import Final

from mooncake_core.workload.formats import azure, bailian, burstgpt, lmcache, mooncake
from mooncake_core.workload.formats.contract import ANSWER_TOKENS, Format, ReadSettings

__all__ = ["ANSWER_TOKENS", "FORMATS", "Format", "ReadSettings"]

FORMATS: Final[dict[str, Format]] = {
    found.name: found for found in (mooncake.FORMAT, bailian.FORMAT, burstgpt.FORMAT, azure.FORMAT, lmcache.FORMAT)
}
"""By name."""
