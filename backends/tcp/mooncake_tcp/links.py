"""The links to a peer that listens on several addresses, as a host with several NICs does: which of them carry connections."""

from __future__ import annotations

import errno
import secrets
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mooncake_core.errors import AuthenticationFailed, PathFailed, TransferError, VersionMismatch
from mooncake_core.transfer.contract import Kind, Operation
from mooncake_core.transfer.lanes import Lane
from mooncake_core.transfer.shares import Shares
from mooncake_core.transfer.sockets import receive_into
from mooncake_core.transfer.weights import Weights
from mooncake_tcp.clock import PeerClock
from mooncake_tcp.connecting import Dialer
from mooncake_tcp.frames import BREAK_OFF, NAME, REQUEST, RESPONSE, Status

FIRST_BACK_OFF_S: Final = 1.0
LAST_BACK_OFF_S: Final = 60.0
WATCH_S: Final = 0.25
"""So often it is looked whether links are silent that have something under way."""
SILENT_S: Final = 1.25
"""A host that is there answers the kernel's own questions sooner, whatever its processes do."""
PROBE_S: Final = 1
"""The kernel asks a connection on which nothing is said so often."""
CALL_BACK_S: Final = 5.0
_TCP_INFO: Final = struct.Struct("=2xBB48xII")
"""Of the kernel's tcp_info: how often in a row it repeated itself, how often it asked, and how many milliseconds ago data and
acknowledgements came."""
_GONE: Final = (errno.ECONNRESET, errno.EPIPE, errno.ECONNREFUSED)
"""The peer's end of the connection has ended."""

Address = tuple[str, int]
Peer = tuple[Address, ...]
"""A process, by all addresses that it listens on."""


@dataclass(slots=True)
class _Track:
    """What is known of one link."""

    weight: float
    set_aside_until_s: float = 0.0
    back_off_s: float = 0.0
    lane: Lane | None = None


class Links:
    """Those to all peers that have several. Any thread."""

    def __init__(self, dialer: Dialer, weights: Weights) -> None:
        self.dialer = dialer
        self._weights = weights
        self._shares: dict[Peer, Shares[Address]] = {}
        self.is_closed = False
        self._lock = threading.Lock()
        self._tracks: dict[Address, _Track] = {}

    def good(self, peer: Peer, now: float) -> list[Address]:
        """Those that have not failed lately; all, where each has."""
        with self._lock:
            return [address for address in peer if self._track(address).set_aside_until_s <= now] or list(peer)

    def allowed(self, addresses: Peer) -> Peer:
        """Those that may carry anything at all."""
        with self._lock:
            return tuple([address for address in addresses if self._track(address).weight])

    def open(self, peer: Peer, address: Address) -> Link:
        """For a connection."""
        return Link(self, peer, address)

    def next(
        self, peer: Peer, addresses: Sequence[Address], num_bytes: int, pending: Mapping[Address, int] | None = None
    ) -> Address:
        """Which of these is to carry so many bytes; `pending` are under way by each."""
        with self._lock:
            shares = self._shares.setdefault(peer, Shares())
            return shares.next({one: self._track(one).weight for one in addresses}, max(1, num_bytes), pending)

    def delivered(self, peer: Peer, address: Address, num_bytes: int, seconds: float) -> None:
        """A connection was busy for so long with so many bytes."""
        with self._lock:
            self._shares.setdefault(peer, Shares()).delivered(address, 1.0, num_bytes, seconds)

    def is_good(self, address: Address, now: float) -> bool:
        """Whether it has not failed lately."""
        with self._lock:
            return self._track(address).set_aside_until_s <= now

    def trusted(self, addresses: Sequence[Address]) -> list[Address]:
        """Those that have not failed for long, or never."""
        with self._lock:
            return [address for address in addresses if not self._track(address).back_off_s]

    def fail(self, address: Address, now: float) -> None:
        """Sets it aside, longer each time."""
        with self._lock:
            track = self._track(address)
            if track.set_aside_until_s <= now:  # several connections fail at once
                track.back_off_s = min(max(2 * track.back_off_s, FIRST_BACK_OFF_S), LAST_BACK_OFF_S)
                track.set_aside_until_s = now + track.back_off_s
                for shares in self._shares.values():
                    shares.forget(address)
                lane = track.lane or self.dialer.unconnected(address[0])
                lane.num_set_aside += 1

    def succeed(self, address: Address, lane: Lane) -> None:
        """A connection was made: the next failure is a first one again, if it comes a while later."""
        with self._lock:
            track = self._track(address)
            track.lane = lane
            if track.set_aside_until_s + track.back_off_s <= time.monotonic():
                track.back_off_s = 0.0

    def forget(self, peer: Peer) -> None:
        """Nothing leads there any more. That a link has failed lately is remembered: it may be tried again."""
        with self._lock:
            self._shares.pop(peer, None)
            for address in peer:
                if not self._track(address).back_off_s:
                    del self._tracks[address]

    def _track(self, address: Address) -> _Track:
        track = self._tracks.get(address)
        if track is None:
            track = self._tracks[address] = _Track(self._weights.of_address(address[0]))
        return track


class Link:
    """That of one connection, which the peer knows by a name of its own."""

    def __init__(self, links: Links, peer: Peer, address: Address) -> None:
        self.address = address
        self._links = links
        self._peer = peer
        self._name = secrets.token_bytes(16)
        self._is_named = False

    def connect(self, sock: socket.socket, clock: PeerClock) -> Lane:
        """As a dialer, and then tells the peer the name, and has the kernel ask whether the other end is there."""
        lane = self._links.dialer.connect(sock, self.address, clock, timeout_s=SILENT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_S)
        self._is_named = True
        sock.sendall(REQUEST.pack(NAME, 0, 0, self._name, 0.0, 0, 0))
        self._links.succeed(self.address, lane)
        return lane

    def delivered(self, num_bytes: int, seconds: float) -> None:
        """The connection was busy for so long with so many bytes."""
        self._links.delivered(self._peer, self.address, num_bytes, seconds)

    def is_lost(self, sock: socket.socket) -> bool:
        """Whether the other end does not answer the kernel, and there is another link to go to."""
        now = time.monotonic()
        others = [address for address in self._peer if address != self.address]
        return is_silent(sock) and any(self._links.is_good(address, now) for address in others)

    def call_back(self, until_s: float) -> bool:
        """Has the peer end the connection, asked over the other links: when it has, no byte of a write that went this way
        lands any more. Whether that is certain."""
        if self._links.is_closed or not self._is_named:
            return True
        self._links.fail(self.address, time.monotonic())
        until_s = min(until_s, time.monotonic() + CALL_BACK_S)
        good = self._links.good(self._peer, time.monotonic())
        for address in [*good, *(set(self._peer) - {*good})]:
            left_s = until_s - time.monotonic()
            if address == self.address or left_s <= 0:
                continue
            try:
                return self._ask(address, left_s)
            except ConnectionRefusedError:  # the process has ended
                return True
            except (OSError, AuthenticationFailed, VersionMismatch):
                continue
        return False

    def _ask(self, address: Address, timeout_s: float) -> bool:
        answer = memoryview(bytearray(RESPONSE.size))
        dialer = self._links.dialer
        with dialer.new_socket(address[0]) as sock:
            dialer.connect(sock, address, PeerClock(), timeout_s=min(timeout_s, SILENT_S))
            sock.settimeout(timeout_s)
            sock.sendall(REQUEST.pack(BREAK_OFF, 0, 0, self._name, 0.0, 0, 0))
            receive_into(sock, answer)
        status, *_ = RESPONSE.unpack(answer)
        return Status(status) is Status.OK


def certain(link: Link, reason: TransferError | None, operations: Sequence[Operation]) -> TransferError | None:
    """Why operations of a broken connection failed: that it is, if others may carry them, which is so for a write once
    nothing of it lands late."""
    now = time.monotonic()
    writes = [one.deadline_s for one in operations if one.kind is Kind.WRITE and one.deadline_s > now]
    is_gone = isinstance(reason, PathFailed) and reason.detail.get("errno") in _GONE
    if not writes or is_gone or link.call_back(min(writes)):
        return reason
    return TransferError(f"{reason}, and the peer could not be told over another link to forget what was on its way")


def is_silent(sock: socket.socket) -> bool:
    """Whether the kernel has asked the other end, and nothing has come for SILENT_S."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:  # closed meanwhile
        return False
    num_repeated, num_asked, data_ms, acknowledged_ms = _TCP_INFO.unpack(info)
    heard_ms: int = min(data_ms, acknowledged_ms)
    return bool(num_repeated or num_asked) and heard_ms >= SILENT_S * 1000
