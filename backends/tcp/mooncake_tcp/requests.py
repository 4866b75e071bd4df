"""What an initiator sends for an operation."""

from __future__ import annotations

from mooncake_core.transfer.contract import Kind, Operation, Range
from mooncake_tcp.clock import PeerClock
from mooncake_tcp.frames import RANGE, REQUEST


def request(operation: Operation, key: bytes, clock: PeerClock) -> list[bytes | memoryview]:
    """The header, and a write's payload."""
    first, *further = operation.ranges or (Range(0, 0),)
    deadline_s = clock.at_peer(operation.deadline_s)
    header = REQUEST.pack(
        operation.kind, len(further), operation.operation_id, key, deadline_s, first.offset, first.length
    )
    if further:
        header += b"".join(RANGE.pack(part.offset, part.length) for part in further)
    return [header, *operation.pieces] if operation.kind is Kind.WRITE else [header]
