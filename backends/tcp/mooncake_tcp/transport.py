"""Transport `tcp`, as the Transfer Engine sees it."""

from __future__ import annotations

import errno
import itertools
import math
import os
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Final, NamedTuple

import msgspec
from msgspec import Struct

from mooncake_core.errors import DeadlineExceeded, PathFailed
from mooncake_core.transfer.contract import Capabilities, Completion, Operation, TransportSettings
from mooncake_core.transfer.exporting import ExportingTransport
from mooncake_core.transfer.sieve import Sieve
from mooncake_core.transfer.slices import SLICE_BYTES
from mooncake_core.transfer.sockets import name_of
from mooncake_tcp.connecting import TRANSPORT, Dialer, connection_failed
from mooncake_tcp.exchange import Pair
from mooncake_tcp.exchanges import Exchanges
from mooncake_tcp.initiator import Connection
from mooncake_tcp.links import WATCH_S, Address, Links, Peer
from mooncake_tcp.plain import PlainSockets, Sockets
from mooncake_tcp.target import Target
from mooncake_tcp.tls import TlsSockets

BUSY_BYTES: Final = 1 << 20
"""A connection with so much under way is worth a further one beside it; small requests follow each other faster."""
MOST_PEERS: Final = 128
"""With connections that have threads of their own, two each."""
MUCH_BYTES: Final = 16 << 20
"""Of less, several threads that have to wake up carry as much as the one that asks."""
LONG_BYTES: Final = 2 << 20
"""Operations of less, on average, are many short transfers together, which would be posted one by one."""


class TcpPath(Struct, frozen=True, array_like=True):
    """What a peer needs to reach one export."""

    host: str
    port: int
    key: bytes
    others: list[tuple[str, int]] = []
    """Further addresses of the same process, by other NICs. A peer of an older version has none, and knows of none."""
    tls: bool = False


class _Reach(NamedTuple):
    """An export, as an operation needs it."""

    peer: Peer
    """Empty where it cannot be reached from here, however its addresses are tried."""
    key: bytes


class TcpTransport(ExportingTransport):
    """Reads and writes over TCP connections, several per peer, opened on demand."""

    name: ClassVar[str] = TRANSPORT
    capabilities: ClassVar[Capabilities] = Capabilities(in_order=True, device_memory=True)

    def __init__(self, settings: TransportSettings) -> None:
        # Before anything is opened: files may not be what they should be.
        self._sockets: Sockets = PlainSockets() if settings.tls is None else TlsSockets(settings.tls)
        super().__init__(settings)
        self._settings = settings
        self.num_ways = settings.connections_per_peer
        looks = settings.busy_poll_s > 0 and not self._sockets.speaks_tls
        num_busy = 2 * self.num_ways if looks else 0
        self._spreads = self.num_ways > 1 and num_busy < len(os.sched_getaffinity(0))
        """Threads that look take a processor each, beside those that send to them: with fewer they would get into each other's
        way."""
        try:
            hosts = dict.fromkeys([settings.listen_host, *settings.further_hosts])
            self._target = Target(
                [*hosts],
                settings.listen_port,
                self.exports,
                settings.secret,
                self._sockets,
                settings.pinned,
                settings.busy_poll_s,
            )
        except PathFailed:
            super().close()
            raise
        self._lock = threading.Condition()
        self._connections: dict[Peer, list[Connection]] = {}
        self._sieve: Sieve[Peer] = Sieve()
        """Those of `_connections`."""
        self._ending: list[Connection] = []
        """Calling back what was on its way."""
        self._dialer = Dialer(settings.secret, settings.lanes, self._sockets)
        self._links = Links(self._dialer, settings.weights)
        self._reach = lru_cache(self._reach_of)
        self._exchanges = Exchanges(self._links, self._note_deadline, settings.busy_poll_s)
        self._turns = itertools.count()
        """Which connection of several that have nothing to do is the first one."""
        self._closing = False
        self._earliest = math.inf
        self._timer = threading.Thread(target=self._watch_deadlines, name="tcp-deadlines", daemon=True)
        self._timer.start()

    def path_of(self, key: bytes) -> bytes:
        (host, port), *others = self._target.addresses
        return msgspec.msgpack.encode(TcpPath(host, port, key, others, self._sockets.speaks_tls))

    def key_of(self, path: bytes) -> bytes:
        return _decoder.decode(path).key

    def post(self, operations: Sequence[Operation]) -> None:
        peers, late = self._by_peer(operations)
        for operation in late:
            self.completions.add(_late(operation))
        for peer, pairs in peers.items():
            if peer:
                self._post_to(peer, pairs)
                continue
            for operation, _ in pairs:
                self.completions.add(Completion(operation.operation_id, self._refusal(operation)))

    def move(self, operations: Sequence[Operation]) -> list[Completion | None]:
        peers, late = self._by_peer(operations)
        ended = {operation.operation_id: _late(operation) for operation in late}
        for peer, pairs in peers.items():
            if not peer or self._is_for_several(peer, pairs):
                continue
            if len(peer) > 1:
                self._note_deadline(time.monotonic() + WATCH_S)
            for completion in self._exchanges.carry_out(peer, pairs) or ():
                if completion is not None:
                    ended[completion.operation_id] = completion
        return [ended.get(operation.operation_id) for operation in operations]

    def close(self) -> None:
        with self._lock:
            if self._closing:
                return
            self._closing = self._links.is_closed = True
            connections = [connection for pool in self._connections.values() for connection in pool]
            connections += self._ending
            self._lock.notify_all()
        closed = PathFailed(f"the transport of {self._settings.owner} was closed")
        for connection in connections:
            connection.end(closed)
        self._exchanges.close(closed)
        self._target.close()
        for connection in connections:
            connection.join()
        self._timer.join()
        super().close()

    def _reach_of(self, path: bytes) -> _Reach:
        named = _decoder.decode(path)
        speaks_alike = named.tls == self._sockets.speaks_tls
        return _Reach(self._links.allowed(_addresses(named)) if speaks_alike else (), named.key)

    def _refusal(self, operation: Operation) -> PathFailed:
        """Why a peer cannot be reached from here."""
        named = _decoder.decode(operation.path)
        if named.tls and not self._sockets.speaks_tls:
            reason, number = (
                "it speaks TLS only: set transfer.tls here too (drop-in: MOONCAKE_TLS_CERTIFICATE ...)",
                errno.EPROTO,
            )
        elif self._sockets.speaks_tls and not named.tls:
            reason, number = "it does not speak TLS, which transfer.tls asks for here: set it there too", errno.EPROTO
        else:
            reason, number = "transfer.weights bans each network of its addresses here", errno.EPERM
        hosts = ", ".join(dict.fromkeys(host for host, _ in _addresses(named)))
        return PathFailed(f"{hosts} over tcp: {reason}", peer=hosts, path=TRANSPORT, errno=number)

    def _is_for_several(self, peer: Peer, pairs: Sequence[Pair]) -> bool:
        """Whether several connections are to carry it at once, in slices, which one thread cannot do: over several links, or
        where it is much and nothing else is under way to this peer."""
        num_bytes = sum([operation.length for operation, _ in pairs])
        if len(peer) > 1:
            return num_bytes > (SLICE_BYTES if len(pairs) == 1 else BUSY_BYTES)
        is_much = num_bytes >= max(MUCH_BYTES, len(pairs) * LONG_BYTES)
        return is_much and self._spreads and not pairs[0][0].in_order and not self._is_busy(peer)

    def _is_busy(self, peer: Peer) -> bool:
        with self._lock:
            is_posted = self._has_pending(peer)
        return is_posted or self._exchanges.is_lent(peer)

    def _has_pending(self, peer: Peer) -> bool:
        """Whether its connections have something under way. Locked."""
        return any(connection.pending_bytes for connection in self._connections.get(peer, ()))

    def _by_peer(self, operations: Sequence[Operation]) -> tuple[dict[Peer, list[Pair]], list[Operation]]:
        """What goes to each peer; and what is late already."""
        peers: dict[Peer, list[Pair]] = {}
        late = []
        now = time.monotonic()
        for operation in operations:
            if operation.deadline_s <= now:
                late.append(operation)
                continue
            peer, key = self._reach(operation.path)
            peers.setdefault(peer, []).append((operation, key))
        return peers, late

    def _post_to(self, peer: Peer, pairs: Sequence[Pair]) -> None:
        """Spreads operations over the peer's connections, by bytes under way."""
        try:
            shares = self._share(peer, pairs)
        except PathFailed as reason:
            for operation, _ in pairs:
                self.completions.add(Completion(operation.operation_id, reason))
            return
        for connection, share in shares:
            if not connection.submit(share):
                self._ended(connection)
                self._post_to(peer, share)
        self._note_deadline(min(operation.deadline_s for operation, _ in pairs))
        if len(peer) > 1:
            self._note_deadline(time.monotonic() + WATCH_S)

    def _share(self, peer: Peer, pairs: Sequence[Pair]) -> list[tuple[Connection, list[Pair]]]:
        """Which connection is to carry what.

        Raises:
            PathFailed: there is none, and the process has no room for the thread of one; or the transport was closed.
        """
        with self._lock:
            if self._closing:
                raise PathFailed(f"the transport of {self._settings.owner} was closed")
            pool = self._pool(peer)
            if len(peer) > 1:
                pool = self._usable(peer, pool)
            most = self._settings.connections_per_peer
            wanted = min(len(pairs), most)
            if pool and min(connection.pending_bytes for connection in pool) >= BUSY_BYTES:
                wanted = min(len(pool) + 1, most)
            if len(peer) == 1:
                self._widen(peer, pool, max(wanted, 1) - len(pool))
            return self._spread(peer, pool, pairs)

    def _pool(self, peer: Peer) -> list[Connection]:
        """The connections to a peer; none yet where it is a new one. Locked."""
        if peer in self._connections:
            self._sieve.touch(peer)
        else:
            if len(self._connections) >= MOST_PEERS:
                self._make_room()
            self._connections[peer] = []
            self._sieve.add(peer)
        return self._connections[peer]

    def _make_room(self) -> None:
        """Ends the connections to a peer to which nothing is under way; where there is none, there are more for a while."""
        peer = self._sieve.evict(lambda one: not self._has_pending(one))
        if peer is None:
            return
        pool = self._connections.pop(peer)
        retired = [connection for connection in pool if connection.retire()]
        self._ending += retired
        if len(retired) < len(pool):  # used just now
            self._connections[peer] = [connection for connection in pool if connection not in retired]
            self._sieve.add(peer)

    def _spread(
        self, peer: Peer, pool: Sequence[Connection], pairs: Sequence[Pair]
    ) -> list[tuple[Connection, list[Pair]]]:
        """Each pair to a connection of the link whose turn it is: to that which has least under way."""
        loads = {connection: connection.pending_bytes for connection in pool}
        members: dict[Address, list[Connection]] = {}
        for connection in pool:
            members.setdefault(connection.link.address if connection.link else peer[0], []).append(connection)
        addresses = [*members]
        pending = {address: sum([loads[one] for one in some]) for address, some in members.items()}
        shares: dict[Connection, list[Pair]] = {}
        for pair in pairs:
            length = pair[0].length + 1
            address = self._links.next(peer, addresses, length, pending) if len(addresses) > 1 else addresses[0]
            connection = min(members[address], key=loads.__getitem__)
            loads[connection] += length
            pending[address] += length
            shares.setdefault(connection, []).append(pair)
        return [*shares.items()]

    def _usable(self, peer: Peer, pool: list[Connection]) -> list[Connection]:
        """Those to a peer with several links: each good one has its share of the connections. Where one has failed before, it is
        connected first."""
        good = self._links.good(peer, time.monotonic())
        per_link = -(-self._settings.connections_per_peer // len(good))
        addresses = [connection.link.address for connection in pool if connection.link]
        for address in good:
            self._widen(peer, pool, per_link - addresses.count(address), address)
        usable = [connection for connection in pool if connection.link and connection.link.address in good] or pool
        trusted = self._links.trusted(good)
        usable = [one for one in usable if one.is_open or (one.link and one.link.address in trusted)] or usable
        first = next(self._turns) % len(usable)
        return usable[first:] + usable[:first]

    def _widen(self, peer: Peer, pool: list[Connection], count: int, address: Address | None = None) -> None:
        """Adds so many connections to the pool of a peer; fewer where the process has no room for their threads, and there are
        others that take what they would have. Locked. Raises as `_share`."""
        most = len(pool) + count
        try:
            while len(pool) < most:
                pool.append(self._connect(peer, address))
        except RuntimeError as error:
            if pool:
                return
            self._forget(peer)
            raise connection_failed(name_of(*(address or peer[0])), f": {error}", errno.EAGAIN) from error

    def _connect(self, peer: Peer, address: Address | None = None) -> Connection:
        link = None if address is None else self._links.open(peer, address)
        return Connection(
            *(address or peer[0]),
            dialer=self._dialer,
            complete=self.completions.add,
            on_end=self._ended,
            link=link,
        )

    def _ended(self, connection: Connection) -> None:
        if connection.link is not None and not self._closing and not connection.is_retired:
            self._links.fail(connection.link.address, time.monotonic())
        with self._lock:
            self._ending = [one for one in self._ending if one.is_running]
            for peer, pool in list(self._connections.items()):
                if connection in pool:
                    pool.remove(connection)
                    self._ending.append(connection)
                if not pool:
                    self._forget(peer)

    def _forget(self, peer: Peer) -> None:
        """It has no connections. Locked."""
        del self._connections[peer]
        self._sieve.remove(peer)

    def _note_deadline(self, deadline: float) -> None:
        # Looked at without the lock, once what it is for is under way: who sets a new earliest looks at all of it after that.
        if deadline < self._earliest:
            with self._lock:
                self._earliest = min(deadline, self._earliest)
                self._lock.notify_all()

    def _watch_deadlines(self) -> None:
        """Breaks connections whose operations are late. Sleeps without a limit while nothing is under way."""
        while True:
            with self._lock:
                if self._closing:
                    return
                patience_s = self._earliest - time.monotonic()
                if patience_s > 0:
                    self._lock.wait(min(patience_s, threading.TIMEOUT_MAX))
                    continue
                connections = [connection for pool in self._connections.values() for connection in pool]
                self._earliest = math.inf
            for connection in connections:
                connection.expire(time.monotonic())
                if (deadline := connection.earliest_deadline()) is not None:
                    self._note_deadline(deadline)
            self._note_deadline(self._exchanges.expire(time.monotonic()))


def _late(operation: Operation) -> Completion:
    return Completion(operation.operation_id, DeadlineExceeded("posted after its deadline"))


def _addresses(named: TcpPath) -> Peer:
    return (named.host, named.port), *named.others


# Made here, once: two threads that make the first one of a type at the same time can end the process.
_decoder: Final = msgspec.msgpack.Decoder(TcpPath)
