"""Transfers to and from peers by name, called from any number of threads."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import NamedTuple

from mooncake._engine_arguments import a_name, a_number, numbers
from mooncake._engine_codes import EngineCode, Status
from mooncake._engine_lifecycle import EngineLifecycle
from mooncake._engine_types import TransferNotify, TransferOpcode
from mooncake._network import split_hostname
from mooncake_core.errors import ConfigError, MooncakeError, StaleSegment, WireError
from mooncake_core.transfer import Batch, Endpoint, Kind, Notification, Peer

Addresses = Sequence[int]

_log = logging.getLogger("mooncake.engine")
_KINDS = {TransferOpcode.Read: Kind.READ, TransferOpcode.Write: Kind.WRITE}


class _Started(NamedTuple):
    """A batch under way, and what must stay the same until its end."""

    endpoint: Endpoint
    batch: Batch


class EngineTransfers(EngineLifecycle):
    """Each call names the peer as `host:port`. A peer that was started anew under its name fails the first transfer to it after
    that: the addresses were those of the process before. The next one goes to the new process."""

    def __init__(self) -> None:
        super().__init__()
        self._peers: dict[str, Peer] = {}
        self._started: dict[int, _Started] = {}
        self._numbers = itertools.count(1)

    def transfer_sync_write(
        self, target_hostname: str, buffer: int, peer_buffer_address: int, length: int, transport_hint: str = ""
    ) -> int:
        """Writes local memory to the peer's: 0, or -1, and the log says why."""
        return self._transfer(Kind.WRITE, target_hostname, [buffer], [peer_buffer_address], [length])

    def transfer_sync_read(
        self, target_hostname: str, buffer: int, peer_buffer_address: int, length: int, transport_hint: str = ""
    ) -> int:
        """Reads the peer's memory into local memory: 0, or -1."""
        return self._transfer(Kind.READ, target_hostname, [buffer], [peer_buffer_address], [length])

    def transfer_sync(
        self,
        target_hostname: str,
        buffer: int,
        peer_buffer_address: int,
        length: int,
        opcode: TransferOpcode,
        notify: TransferNotify | None = None,
        transport_hint: str = "",
    ) -> int:
        """Either; `notify` is told to the peer when the bytes have arrived."""
        return self._transfer(_kind(opcode), target_hostname, [buffer], [peer_buffer_address], [length], notify)

    def batch_transfer_sync_write(
        self,
        target_hostname: str,
        buffers: Addresses,
        peer_buffer_addresses: Addresses,
        lengths: Sequence[int],
        transport_hint: str = "",
    ) -> int:
        """Many writes at once: 0, or -1 where one fails."""
        return self._transfer(Kind.WRITE, target_hostname, buffers, peer_buffer_addresses, lengths)

    def batch_transfer_sync_read(
        self,
        target_hostname: str,
        buffers: Addresses,
        peer_buffer_addresses: Addresses,
        lengths: Sequence[int],
        transport_hint: str = "",
    ) -> int:
        """Many reads at once."""
        return self._transfer(Kind.READ, target_hostname, buffers, peer_buffer_addresses, lengths)

    def batch_transfer_sync(
        self,
        target_hostname: str,
        buffers: Addresses,
        peer_buffer_addresses: Addresses,
        lengths: Sequence[int],
        opcode: TransferOpcode,
        notify: TransferNotify | None = None,
        transport_hint: str = "",
    ) -> int:
        """Many of either."""
        return self._transfer(_kind(opcode), target_hostname, buffers, peer_buffer_addresses, lengths, notify)

    def batch_transfer_async_write(
        self,
        target_hostname: str,
        buffers: Addresses,
        peer_buffer_addresses: Addresses,
        lengths: Sequence[int],
        transport_hint: str = "",
    ) -> int:
        """Begins many writes; a number for `transfer_check_status`, 0 where they cannot begin."""
        return self._start(Kind.WRITE, target_hostname, buffers, peer_buffer_addresses, lengths)

    def batch_transfer_async_read(
        self,
        target_hostname: str,
        buffers: Addresses,
        peer_buffer_addresses: Addresses,
        lengths: Sequence[int],
        transport_hint: str = "",
    ) -> int:
        """Begins many reads."""
        return self._start(Kind.READ, target_hostname, buffers, peer_buffer_addresses, lengths)

    def batch_transfer_async(
        self,
        target_hostname: str,
        buffers: Addresses,
        peer_buffer_addresses: Addresses,
        lengths: Sequence[int],
        opcode: TransferOpcode,
        transport_hint: str = "",
    ) -> int:
        """Begins many of either."""
        return self._start(_kind(opcode), target_hostname, buffers, peer_buffer_addresses, lengths)

    def transfer_submit_write(
        self, target_hostname: str, buffer: int, peer_buffer_address: int, length: int, transport_hint: str = ""
    ) -> int:
        """Begins a write."""
        return self._start(Kind.WRITE, target_hostname, [buffer], [peer_buffer_address], [length])

    def transfer_check_status(self, batch_id: int) -> int:
        """1 done, 0 under way, -1 failed, -2 timed out; but for 0, the number means nothing after that, and gives -1."""
        with self._lock:
            started = self._started.get(a_number(batch_id))
        if started is None:
            return Status.FAILED
        if started.batch.pending:
            return Status.PENDING
        return self._ended(batch_id, started)

    def get_batch_transfer_status(self, batch_ids: Sequence[int]) -> int:
        """Waits until all have ended: 0, or -1 where one failed."""
        ended = []
        for batch_id in numbers(batch_ids):
            with self._lock:
                started = self._started.get(batch_id)
            if started is not None:
                started.endpoint.wait(started.batch)
            ended.append(Status.FAILED if started is None else self._ended(batch_id, started))
        return EngineCode.OK if all(status is Status.DONE for status in ended) else EngineCode.FAILED

    def get_notifies(self) -> list[TransferNotify]:
        """What peers told since the last call."""
        taken = self._endpoint.take_notifications() if self._endpoint else []
        return [TransferNotify(name, message) for name, message in taken]

    def send_probe(self, peer_server_name: str) -> int:
        """0 where an engine of that name is there; -101 where the name is none, -102 where nobody answers."""
        return self._ask("send_probe", lambda endpoint: endpoint.probe(_peer_name(a_name(peer_server_name))))

    def get_first_buffer_address(self, segment_name: str) -> int:
        """Of the memory that a peer registered first; 0 where there is none, or no peer."""
        found: list[int] = []

        def work(endpoint: Endpoint) -> None:
            peer = endpoint.open(_peer_name(a_name(segment_name)))
            found.append(peer.first_address or 0)

        return found[0] if self._ask("get_first_buffer_address", work) == EngineCode.OK else 0

    def warmup_efa_segment(self, segment_name: str) -> int:
        """Gets to know a peer before the first transfer: 0, or a code."""
        return self._ask("warmup_efa_segment", lambda endpoint: self._peer(endpoint, a_name(segment_name)))

    def _transfer(
        self,
        kind: Kind,
        target: str,
        buffers: Addresses,
        peer_addresses: Addresses,
        lengths: Sequence[int],
        notify: TransferNotify | None = None,
    ) -> int:
        target = a_name(target)
        endpoint, near, far, sizes = self._checked(buffers, peer_addresses, lengths)
        if endpoint is None:
            return EngineCode.FAILED
        try:
            peer = self._peer(endpoint, target)
            endpoint.move(kind, peer, *endpoint.neighbours(peer, near, sizes, far))
            if notify is not None:
                endpoint.notify(peer, Notification(notify.name, notify.msg))
        except MooncakeError as error:
            self._failed(target, error)
            return EngineCode.FAILED
        return EngineCode.OK

    def _start(
        self, kind: Kind, target: str, buffers: Addresses, peer_addresses: Addresses, lengths: Sequence[int]
    ) -> int:
        target = a_name(target)
        endpoint, near, far, sizes = self._checked(buffers, peer_addresses, lengths)
        if endpoint is None:
            return 0
        try:
            peer = self._peer(endpoint, target)
            batch = endpoint.start(kind, peer, *endpoint.neighbours(peer, near, sizes, far))
        except MooncakeError as error:
            self._failed(target, error)
            return 0
        with self._lock:
            batch_id = next(self._numbers)
            self._started[batch_id] = _Started(endpoint, batch)
        return batch_id

    def _checked(
        self, buffers: Addresses, peer_addresses: Addresses, lengths: Sequence[int]
    ) -> tuple[Endpoint | None, Addresses, Addresses, Sequence[int]]:
        near, far, sizes = numbers(buffers), numbers(peer_addresses), numbers(lengths)
        endpoint = self._endpoint
        if endpoint is None:
            _log.error("the engine is not initialized: call initialize() first")
        elif not len(near) == len(far) == len(sizes):
            _log.error("%d buffers, %d peer addresses and %d lengths are not as many", len(near), len(far), len(sizes))
            endpoint = None
        return endpoint, near, far, sizes

    def _peer(self, endpoint: Endpoint, target: str) -> Peer:
        peer = self._peers.get(target)
        if peer is None:
            peer = endpoint.open(_peer_name(target))
            self._peers[target] = peer
        return peer

    def _failed(self, target: str, error: MooncakeError) -> None:
        """A peer that is another process by now, or that cannot be asked, is opened anew the next time."""
        _log.error("the transfer with %s failed: %s", target, error)
        if isinstance(error, StaleSegment | WireError):
            self._peers.pop(target, None)

    def _ended(self, batch_id: int, started: _Started) -> Status:
        with self._lock:
            self._started.pop(batch_id, None)
        errors = [transfer.error for transfer in started.batch.transfers if transfer.error is not None]
        if not errors:
            return Status.DONE
        _log.error("transfer %d failed: %s", batch_id, errors[0])
        return Status.TIMED_OUT if isinstance(errors[0], TimeoutError) else Status.FAILED

    def _close(self) -> None:
        self._peers.clear()
        super()._close()


def _kind(opcode: TransferOpcode) -> Kind:
    if not isinstance(opcode, TransferOpcode):
        raise TypeError(f"expected a TransferOpcode, got {type(opcode).__name__}")
    return _KINDS[opcode]


def _peer_name(text: str) -> str:
    """The name in the form that endpoints take; upstream's callers join IPv6 addresses and ports without brackets.

    Raises:
        ConfigError: it has no port.
    """
    address = split_hostname(text)
    if address.port == 0 and text.count(":") > 1 and not text.startswith("["):
        host, _, port = text.rpartition(":")
        address = split_hostname(f"[{host}]:{port}")
    if address.port == 0:
        raise ConfigError(f"expected the host:port of an engine, got {text!r}")
    return str(address)
