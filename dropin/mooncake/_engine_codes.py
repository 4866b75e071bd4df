"""The numbers that `mooncake.engine` answers with: upstream's, for the errors of this project."""

from __future__ import annotations

import enum
from typing import Final

from mooncake_core.errors import MooncakeError


class EngineCode(enum.IntEnum):
    """Negative answers; 0 is success."""

    OK = 0
    FAILED = -1
    NOT_REGISTERED = -3
    OVERLAPPED = -7
    DNS = -101
    SOCKET = -102
    NOT_SUPPORTED = -999


class Status(enum.IntEnum):
    """What `transfer_check_status` answers."""

    TIMED_OUT = -2
    FAILED = -1
    PENDING = 0
    DONE = 1


_CODES: Final = {
    "not_registered": EngineCode.NOT_REGISTERED,
    "memory_overlaps": EngineCode.OVERLAPPED,
    "peer_unreachable": EngineCode.SOCKET,
    "deadline_exceeded": EngineCode.SOCKET,
    "config": EngineCode.DNS,
}


def engine_code(error: MooncakeError) -> int:
    """The number for an error of a call that is not a transfer: those fail with FAILED."""
    return int(_CODES.get(error.code, EngineCode.FAILED))
