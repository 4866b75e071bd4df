"""What a target sends out of, and receives into, memory of a device: in parts, through pinned memory of the host."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from mooncake_core.errors import TransferError
from mooncake_core.transfer.device import Device
from mooncake_core.transfer.device_memory import copy
from mooncake_core.transfer.pinned import PinnedBuffers
from mooncake_core.transfer.slices import cut_pieces, total_bytes
from mooncake_core.transfer.sockets import receive_into
from mooncake_tcp.sending import Sender

PART_BYTES: Final = 1 << 20
"""Copied at once: the kernel sends what it was given while the next part is copied."""

_log = logging.getLogger(__name__)


def send_from_device(
    sender: Sender,
    response: bytes,
    memories: Sequence[memoryview],
    device: Device,
    pinned: PinnedBuffers,
) -> None:
    """An answer, and the bytes behind it.

    Raises:
        TransferError: the device's driver refuses; nothing was sent.
        OSError: the connection is to be ended, as the peer waits for bytes that do not come.
    """
    with _lent(pinned, device) as buffer:
        head = [response]
        for pieces, part in _parts(memories, buffer):
            try:
                copy(pieces, [part], write=True)
            except TransferError as error:
                _log.warning("memory of %s could not be read for a peer: %s", device.name, error)
                if head:
                    raise
                raise ConnectionAbortedError(str(error)) from error
            sender.send([*head, part])
            head = []


def receive_to_device(
    connection: socket.socket, memories: Sequence[memoryview], device: Device, pinned: PinnedBuffers
) -> bool:
    """Whether all bytes have arrived on the device; all have been received in any case.

    Raises:
        TransferError: memory of the host could not be pinned; nothing was received.
    """
    arrived = True
    with _lent(pinned, device) as buffer:
        for pieces, part in _parts(memories, buffer):
            receive_into(connection, part)
            try:
                if arrived:
                    copy(pieces, [part], write=False)
            except TransferError as error:
                _log.warning("memory of %s could not be written for a peer: %s", device.name, error)
                arrived = False
    return arrived


@contextmanager
def _lent(pinned: PinnedBuffers, device: Device) -> Iterator[memoryview]:
    """As `lent`; the log says why there is none: the peer is told only that it failed."""
    with ExitStack() as lent:
        try:
            buffer = lent.enter_context(pinned.lent(device))
        except TransferError as error:
            _log.warning("memory of %s could not be moved for a peer: %s", device.name, error)
            raise
        yield buffer


def _parts(memories: Sequence[memoryview], buffer: memoryview) -> Iterator[tuple[Sequence[memoryview], memoryview]]:
    """Pieces, and as much of the buffer."""
    for pieces in cut_pieces(memories, min(PART_BYTES, buffer.nbytes)):
        yield pieces, buffer[: total_bytes(pieces)]
