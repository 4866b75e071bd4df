"""Where the files of `transfer.tls` are."""

from __future__ import annotations

from pathlib import Path

from mooncake_core.config.schema import TlsConfig


def absolute(tls: TlsConfig) -> TlsConfig:
    """The same files, for a process that runs in another folder."""
    return TlsConfig(certificate=_absolute(tls.certificate), key=_absolute(tls.key), ca=_absolute(tls.ca))


def _absolute(file: str) -> str:
    return str(Path(file).expanduser().absolute())
