"""Files with secrets: only their owner may read them."""

from __future__ import annotations

import stat
from pathlib import Path

from mooncake_core.errors import ConfigError


def read_private(path: Path, what: str, hint: str) -> bytes:
    """What a file holds.

    Raises:
        ConfigError: it cannot be read, or others can read it; says what to do.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}; {hint}") from error
    if mode & 0o077:
        raise ConfigError(f"{path} can be read by others (mode {mode:03o}); chmod 600 {path}")
    return data
