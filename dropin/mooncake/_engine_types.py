"""Small things that calls of `mooncake.engine` take and give."""

from __future__ import annotations

import enum


class TransferOpcode(enum.IntEnum):
    """Which way bytes go, seen from the caller."""

    Read = 0
    Write = 1


class TransferNotify:
    """What one application tells another beside a transfer."""

    def __init__(self, name: str = "", msg: str = "") -> None:
        self.name = name
        self.msg = msg

    def __repr__(self) -> str:
        return f"TransferNotify({self.name!r}, {self.msg!r})"
