"""What an initiator sends for an operation."""

from __future__ import annotations

import struct

from mooncake_core.transfer.contract import Kind, Operation, Range
from mooncake_core.transfer.slices import joined
from mooncake_tcp.clock import PeerClock
from mooncake_tcp.frames import REQUEST


def request(operation: Operation, key: bytes, clock: PeerClock) -> list[bytes | memoryview]:
    """The header, and a write's payload."""
    ranges = operation.ranges
    first, *further = (joined(ranges) if len(ranges) > 1 else ranges) or (Range(0, 0),)
    deadline_s = clock.at_peer(operation.deadline_s)
    header = REQUEST.pack(
        operation.kind, len(further), operation.operation_id, key, deadline_s, first.offset, first.length
    )
    if further:
        numbers = [number for part in further for number in (part.offset, part.length)]
        header += struct.pack(f"<{len(numbers)}Q", *numbers)  # as RANGE, all at once
    return [header, *operation.pieces] if operation.kind is Kind.WRITE else [header]
