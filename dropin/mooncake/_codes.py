"""The numbers that `mooncake.store` answers with: upstream's, for the errors of this project."""

from __future__ import annotations

import enum
from typing import Final

from mooncake_core.errors import MooncakeError


class Code(enum.IntEnum):
    """Negative answers. 0, or a number of bytes, is success."""

    OK = 0
    INTERNAL_ERROR = -1
    BUFFER_OVERFLOW = -10
    SEGMENT_NOT_FOUND = -101
    NO_AVAILABLE_HANDLE = -200
    INVALID_KEY = -400
    INVALID_PARAMS = -600
    INVALID_WRITE = -700
    OBJECT_NOT_FOUND = -704
    OBJECT_ALREADY_EXISTS = -705
    OBJECT_HAS_LEASE = -706
    OBJECT_REPLICA_BUSY = -714
    TRANSFER_FAIL = -800
    CHECKSUM_MISMATCH = -801
    RPC_FAIL = -900
    RPC_TIMEOUT = -901
    NOT_SUPPORTED = -1012
    FILE_NOT_FOUND = -1100
    FILE_WRITE_FAIL = -1103
    TASK_NOT_FOUND = -1400
    TASK_PENDING_LIMIT_EXCEEDED = -1401
    TENANT_QUOTA_EXCEEDED = -1700
    TENANT_NOT_REGISTERED = -1701


_CODES: Final = {
    "": Code.OK,
    "config": Code.INVALID_PARAMS,
    "plugin_unknown": Code.INVALID_PARAMS,
    "plugin_unavailable": Code.INVALID_PARAMS,
    "invalid_request": Code.INVALID_PARAMS,
    "peer_unreachable": Code.RPC_FAIL,
    "authentication_failed": Code.RPC_FAIL,
    "version_mismatch": Code.RPC_FAIL,
    "protocol": Code.RPC_FAIL,
    "wire": Code.RPC_FAIL,
    "deadline_exceeded": Code.RPC_TIMEOUT,
    "transfer": Code.TRANSFER_FAIL,
    "path_failed": Code.TRANSFER_FAIL,
    "stale_segment": Code.TRANSFER_FAIL,
    "out_of_range": Code.INVALID_PARAMS,
    "no_space": Code.NO_AVAILABLE_HANDLE,
    "object_not_found": Code.OBJECT_NOT_FOUND,
    "object_exists": Code.OBJECT_ALREADY_EXISTS,
    "object_leased": Code.OBJECT_HAS_LEASE,
    "object_busy": Code.OBJECT_REPLICA_BUSY,
    "quota_exceeded": Code.TENANT_QUOTA_EXCEEDED,
    "tenant_unknown": Code.TENANT_NOT_REGISTERED,
    "stale_allocation": Code.INVALID_WRITE,
    "node_not_found": Code.INVALID_PARAMS,
    "node_draining": Code.SEGMENT_NOT_FOUND,
    "task_not_found": Code.TASK_NOT_FOUND,
    "too_many_tasks": Code.TASK_PENDING_LIMIT_EXCEEDED,
    "checksum_mismatch": Code.CHECKSUM_MISMATCH,
}


def code_of(error: str | MooncakeError) -> int:
    """The number for an error, or for its code."""
    name = error.code if isinstance(error, MooncakeError) else error
    return int(_CODES.get(name, Code.INTERNAL_ERROR))
