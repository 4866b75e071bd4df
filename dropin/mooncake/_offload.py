"""The SSD below a store's segment, in upstream's settings: a tier of the helper process."""

from __future__ import annotations

import logging
import os
from typing import Final

from mooncake._settings import Settings, size_of
from mooncake_core.config.schema import TierConfig
from mooncake_core.errors import ConfigError

PATH: Final = "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH"
LIMITS: Final = ("MOONCAKE_OFFLOAD_BUCKET_MAX_TOTAL_SIZE", "MOONCAKE_OFFLOAD_TOTAL_SIZE_LIMIT_BYTES")
"""Most bytes on the SSD; the smallest that is set counts, and 0 is as good as none."""
TIMES_THE_SEGMENT: Final = 10
"""The limit where none is set: a disk must not fill by default."""
LEAST_BYTES: Final = 1 << 30

_log = logging.getLogger("mooncake.store")


def offload_tiers(settings: Settings) -> list[TierConfig]:
    """Where the segment's objects go that DRAM has no room for; none where that is not wanted.

    Raises:
        ConfigError: nothing says where, or a limit is no size.
    """
    if not settings.enable_ssd_offload:
        return []
    if not settings.global_segment_size:
        _log.warning("enable_ssd_offload: this store contributes no segment, so it has nothing to put on an SSD")
        return []
    path = settings.ssd_offload_path or os.environ.get(PATH, "")
    if not path:
        raise ConfigError(
            f"enable_ssd_offload: expected a folder on an SSD, none is named: give ssd_offload_path, or set {PATH}"
        )
    return [TierConfig(kind="lmdb", path=path, folder="first-free", capacity=_limit(settings.global_segment_size))]


def _limit(segment_bytes: int) -> int:
    limits = [size for name in LIMITS if (size := _bytes_in(name))]
    return min(limits, default=max(LEAST_BYTES, TIMES_THE_SEGMENT * segment_bytes))


def _bytes_in(variable: str) -> int:
    try:
        return size_of(os.environ.get(variable) or 0)
    except ValueError as error:
        raise ConfigError(f"{variable}: {error}") from error
