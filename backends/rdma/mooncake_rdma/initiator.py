"""The initiator's side: connections to all peers, and the one thread that hears from devices and peers, and keeps deadlines."""

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from mooncake_core.errors import DeadlineExceeded, PathFailed, StaleSegment, TransferError
from mooncake_core.transfer.contract import Completion
from mooncake_core.transfer.lanes import Lane, Lanes
from mooncake_core.transfer.sieve import Sieve
from mooncake_core.transfer.weights import Weights
from mooncake_rdma.connection import Connection, Registered, Work
from mooncake_rdma.messages import Message
from mooncake_rdma.paths import PortAddress, Rail, RdmaPath
from mooncake_rdma.peers import Peer, Peers
from mooncake_rdma.requests import Ended
from mooncake_rdma.room import Room

if TYPE_CHECKING:
    from mooncake_rdma.verbs import Device

PAUSE_S: Final = 0.1
WATCH_S: Final = 0.5
STALL_S: Final = 5.0
"""Messages are short: on a rail that is well, some end all the time."""
LONGEST_WAIT_S: Final = 86_400.0
"""epoll takes so much, and not much more."""
MOST_CONNECTIONS: Final = 1024
"""NICs keep the state of so many queue pairs close at hand. More are opened only where all are in use."""

_log = logging.getLogger(__name__)


class Initiator:
    """Carries out works over the rails to their peer; what fails on one is tried on the others. Any thread."""

    def __init__(
        self,
        devices: Sequence[Device],
        ports: Sequence[PortAddress],
        *,
        owner: str,
        secret: bytes | None,
        lanes: Lanes,
        weights: Weights,
        messages: Callable[[Work], Iterable[Message[Registered]]],
        complete: Callable[[Completion], None],
    ) -> None:
        """`messages` cuts a work anew, and raises TransferError where it cannot be moved as it is; `complete` is called without a
        lock."""
        self._devices = devices
        self._rooms = [Room[Connection](device.most_requests) for device in devices]
        self._ports = ports
        self._secret = secret
        self._lanes = lanes
        self._messages = messages
        self._complete = complete
        self._closed = PathFailed(f"the transport of {owner} was closed", path="rdma", errno=errno.ESHUTDOWN)
        self._made_room = PathFailed("it was closed to make room for others", path="rdma", errno=errno.ECONNABORTED)
        self._lock = threading.RLock()
        self._peers = Peers(ports, weights)
        self._numbers = itertools.count(1)
        self._openers: set[threading.Thread] = set()
        self._retired: set[Connection] = set()
        """Broken, and others have taken their place; to be ended."""
        self._sieve: Sieve[Connection] = Sieve()
        self._closing = False
        self._earliest_s = math.inf
        self._watch_at_s = 0.0
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._by_descriptor: dict[int, Device | Connection] = {}
        self._undrained: set[Device] = set()
        """Devices that may have more to say."""
        for device in devices:
            self._by_descriptor[device.fileno()] = device
            self._epoll.register(device.fileno(), select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="rdma-completions", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._epoll.close()
            os.close(self._wake_fd)
            raise

    def start(self, works: Sequence[Work]) -> None:
        """Each ends with one completion."""
        shares: dict[Connection, list[Work]] = {}
        refused: list[tuple[Work, TransferError]] = []
        with self._lock:
            loads: dict[Connection, int] = {}
            for work in works:
                try:
                    chosen = self._choose(work, loads)
                except TransferError as reason:
                    refused.append((work, reason))
                    continue
                self._sieve.touch(chosen)
                loads[chosen] = loads.get(chosen, chosen.pending_bytes) + work.operation.length + 1
                shares.setdefault(chosen, []).append(work)
        for work, error in refused:
            self._complete(Completion(work.operation.operation_id, error))
        for connection, chosen_for in shares.items():
            share = [work for work in chosen_for if self._cut(work)]
            if not share:
                continue
            if not connection.submit(share):
                if connection.broken is self._made_room:
                    self.start(share)
                    continue
                self._retire(connection)
                self._fail_over(share, connection, connection.broken or self._closed)
                continue
            if connection.broken:
                self._wake()
            self._note_deadline(min(work.operation.deadline_s for work in share))

    def close(self) -> None:
        """Fails what is under way. Idempotent."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            connections = self._connections()
            openers = list(self._openers)
        self._wake()
        self._thread.join()
        for connection in connections:
            connection.doom(self._closed)
        for opener in openers:
            opener.join()
        for connection in connections:
            for work in connection.end():
                self._complete(Completion(work.operation.operation_id, self._closed, connection.lane))
        self._epoll.close()
        with self._lock:
            os.close(self._wake_fd)
            self._wake_fd = -1

    def _cut(self, work: Work) -> bool:
        """Whether it can be moved: or else it alone ends, and nothing is to be said against its connection."""
        try:
            work.messages = deque(self._messages(work))
        except TransferError as error:
            self._complete(Completion(work.operation.operation_id, error))
            return False
        return True

    def _choose(self, work: Work, loads: dict[Connection, int]) -> Connection:
        """The connection that is to carry it. Locked. Raises as `Peers.candidates`."""
        if self._closing:
            raise self._closed
        peer = self._peers.of(work.path)
        candidates = self._peers.candidates(peer, work, time.monotonic())
        connections = {rail: self._connection(peer, rail, work.path) for rail in candidates}
        pending = {rail: loads.get(one, one.pending_bytes) for rail, one in connections.items()}
        return connections[self._peers.next(peer, work, pending)]

    def _connection(self, peer: Peer, rail: Rail, path: RdmaPath) -> Connection:
        track = peer.tracks[rail]
        if track.connection is None:
            self._make_room()
            track.connection = Connection(
                self._devices[rail.ours],
                rail,
                path,
                room=self._rooms[rail.ours],
                secret=self._secret,
                delivered=partial(self._delivered, peer, rail, self._peers.rate(rail, path)),
                lane=self._lanes.get("rdma", str(self._ports[rail.ours]), f"{path.host} {path.ports[rail.theirs]}"),
                numbers=self._numbers,
                withdrawn=peer.note_withdrawn,
            )
            opener = threading.Thread(
                target=self._open, args=(track.connection,), name=f"rdma-to-{track.connection.peer}", daemon=True
            )
            try:
                opener.start()
            except RuntimeError as error:
                track.connection = None
                raise PathFailed(
                    f"{path.host}:{path.port} over rdma: {error}", path="rdma", errno=errno.EAGAIN
                ) from error
            self._openers.add(opener)
            self._sieve.add(track.connection)
        return track.connection

    def _delivered(self, peer: Peer, rail: Rail, rate: float, num_bytes: int, seconds: float) -> None:
        with self._lock:
            peer.delivered(rail, rate, num_bytes, seconds, time.monotonic())

    def _make_room(self) -> None:
        """For one more. Locked."""
        if len(self._sieve) < MOST_CONNECTIONS:
            return
        idle = self._sieve.evict(lambda connection: not connection.pending_bytes)
        if idle is not None:
            idle.doom(self._made_room)
            self._peers.detach(idle, time.monotonic(), set_aside=False)
            self._retired.add(idle)
            self._wake()

    def _open(self, connection: Connection) -> None:
        connection.open()
        with self._lock:
            sock = connection.data_connection
            if connection.broken is None and sock is not None and not self._closing:
                self._by_descriptor[sock.fileno()] = connection
                self._epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP)
            else:
                self._wake()
            self._openers.discard(threading.current_thread())

    def _run(self) -> None:
        while not self._closing:
            try:
                self._turn()
            except Exception:  # of one connection; the others must go on
                _log.exception("a turn of the rdma transport failed")
                time.sleep(PAUSE_S)

    def _turn(self) -> None:
        told: set[Device] = set()
        for descriptor, _ in self._epoll.poll(self._patience_s()):
            if descriptor == self._wake_fd:
                os.eventfd_read(self._wake_fd)
                continue
            source = self._by_descriptor.get(descriptor)
            if isinstance(source, Connection):
                if not source.hear():
                    source.doom(source.failure("the peer is gone", errno.ECONNRESET))
            elif source is not None:
                told.add(source)
        self._undrained |= told
        for device in list(self._undrained):
            self._hear_device(device, is_told=device in told)
        for room in self._rooms:
            for connection in room.waiting():
                connection.go_on()
        for connection in self._all():
            if connection.broken:
                self._end(connection, None, connection.broken)
        now = time.monotonic()
        if self._earliest_s <= now:
            self._expire()
        if self._watch_at_s <= now:
            self._watch(now)

    def _patience_s(self) -> float:
        """How long nothing but events has to be looked at."""
        if self._undrained:
            return 0.0
        with self._lock:
            next_s = min(self._earliest_s, self._watch_at_s if self._connections() else math.inf)
        return max(0.0, min(next_s - time.monotonic(), LONGEST_WAIT_S))

    def _watch(self, now: float) -> None:
        """Sets rails aside that stand still: a link that goes down is not an error of its queue pairs, by every device."""
        self._watch_at_s = now + WATCH_S
        for connection in self._all():
            if not connection.pending_bytes:
                continue
            device = self._devices[connection.rail.ours]
            if not device.is_active:
                self._end(connection, None, connection.failure("the link is down", errno.ENETDOWN))
            elif connection.stands_still_since(now - STALL_S) and self._may_leave(connection):
                self._end(connection, None, connection.failure(f"nothing moved for {STALL_S:g} s", errno.ETIMEDOUT))

    def _may_leave(self, connection: Connection) -> bool:
        """Whether other transports take over what it carries, or other rails to its peer which are not set aside."""
        if connection.has_others:
            return True
        with self._lock:
            return self._peers.has_others(connection, time.monotonic())

    def _hear_device(self, device: Device, *, is_told: bool) -> None:
        """Some of what has completed: deadlines must be looked at between."""
        try:
            if is_told:
                device.wait_is_over()
            found = device.completed()
        except Exception as error:  # of one device; the others must go on
            self._give_up(device, error)
            return
        if not found:
            self._undrained.discard(device)
            return
        by_number = {
            connection.queue_pair: connection
            for connection in self._all()
            if self._devices[connection.rail.ours] is device  # each device counts its own
        }
        for ended in found:
            connection = by_number.get(ended.queue_pair)
            if connection is None or not connection.holds(ended.number):
                continue  # of a queue pair that was closed
            if ended.status == "SUCCESS":
                self._succeed(connection.succeeded(ended.number), connection.lane)
            else:
                self._fail(connection, ended)

    def _give_up(self, device: Device, error: Exception) -> None:
        """A device that cannot be heard is not used again: what its queue pairs have under way goes over others."""
        number = _errno_of(error)
        reason = PathFailed(f"device {device.port} failed: {error}", path="rdma", errno=number)
        _log.error("%s; it is not used any more until the process is started anew", reason)
        with self._lock:
            self._peers.give_up(self._devices.index(device), reason)
            self._undrained.discard(device)
            del self._by_descriptor[device.fileno()]
            self._epoll.unregister(device.fileno())
        for connection in self._all():
            if self._devices[connection.rail.ours] is device:
                self._end(connection, None, connection.failure(reason.message, number))

    def _succeed(self, works: Iterable[Work], lane: Lane) -> None:
        for work in works:
            self._complete(Completion(work.operation.operation_id, None, lane))

    def _fail(self, connection: Connection, ended: Ended) -> None:
        """A work request failed, and the queue pair with it: the others are tried again."""
        done, to_blame, reason = connection.failed(ended)
        self._succeed(done, connection.lane)
        self._end(connection, to_blame if ended.status == "REM_ACCESS_ERR" else None, reason)

    def _end(self, connection: Connection, to_blame: Work | None, reason: TransferError) -> None:
        """Ends a connection. Where an operation is to blame, which had no right to its memory any more, the rail is as good as
        before; else it is set aside."""
        self._forget(connection, set_aside=to_blame is None)
        stale = StaleSegment(f"{connection.peer} has withdrawn the segment, or was started anew")
        left = connection.end()
        if to_blame is None:
            if left and not self._closing:
                _log.warning("set aside: %s", reason)
            self._fail_over(left, connection, reason)
            return
        for work in left:
            if work.path.export == to_blame.path.export:
                self._complete(Completion(work.operation.operation_id, stale, connection.lane))
        self._again([work for work in left if work.path.export != to_blame.path.export], connection, reason)

    def _fail_over(self, works: Iterable[Work], connection: Connection, reason: TransferError) -> None:
        """Works of a connection that is broken, on other rails."""
        if isinstance(reason, StaleSegment):
            for work in works:
                self._complete(Completion(work.operation.operation_id, reason, connection.lane))
            return
        for work in works:
            work.tried.add(connection.rail)
        self._again(works, connection, reason)

    def _again(self, works: Iterable[Work], connection: Connection, reason: TransferError) -> None:
        """Works whose connection ended, on another one; or the reason, where there is none."""
        now = time.monotonic()
        retried: list[Work] = []
        for work in works:
            work.in_flight = 0
            if work.operation.deadline_s <= now:
                self._complete(Completion(work.operation.operation_id, _late(work), connection.lane))
            elif self._peers.has_left(work):
                connection.lane.num_failures += 1
                retried.append(work)
            else:
                self._complete(Completion(work.operation.operation_id, reason, connection.lane))
        self.start(retried)

    def _expire(self) -> None:
        now = time.monotonic()
        self._earliest_s = math.inf
        for connection in self._all():
            given_up, must_end = connection.expired(now)
            for work in given_up:
                self._complete(Completion(work.operation.operation_id, _late(work), connection.lane))
            if must_end:  # only so it is sure that the memory of what is late is not touched any more
                missed = connection.failure("a transfer missed its deadline", errno.ETIMEDOUT)
                self._forget(connection)
                self._again(connection.end(), connection, missed)
            elif (deadline_s := connection.earliest_deadline_s()) is not None:
                self._note_deadline(deadline_s)

    def _forget(self, connection: Connection, *, set_aside: bool = False) -> None:
        """Nothing is heard for it any more, and others may take its place."""
        with self._lock:
            sock = connection.data_connection
            if sock is not None and self._by_descriptor.get(sock.fileno()) is connection:
                del self._by_descriptor[sock.fileno()]
                self._epoll.unregister(sock)
            self._peers.detach(connection, time.monotonic(), set_aside=set_aside)
            self._retired.discard(connection)
            self._sieve.remove(connection)
            self._wake()  # it makes room, for which others may wait

    def _retire(self, connection: Connection) -> None:
        """It is broken: others take its place, and the thread ends it."""
        with self._lock:
            if self._peers.detach(connection, time.monotonic(), set_aside=True):
                self._retired.add(connection)
                self._sieve.remove(connection)
            self._wake()

    def _connections(self) -> list[Connection]:
        return [*self._peers.connections(), *self._retired]

    def _all(self) -> list[Connection]:
        with self._lock:
            return self._connections()

    def _wake(self) -> None:
        with self._lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _note_deadline(self, deadline_s: float) -> None:
        # Looked at without the lock, once what it is for is under way: who sets a new earliest looks at all of it after that.
        if deadline_s < self._earliest_s:
            with self._lock:
                self._earliest_s = min(self._earliest_s, deadline_s)
            self._wake()


def _errno_of(error: Exception) -> int:
    known = error.detail.get("errno") if isinstance(error, TransferError) else getattr(error, "errno", None)
    return known or errno.EIO


def _late(work: Work) -> DeadlineExceeded:
    return DeadlineExceeded(f"{work.path.host}:{work.path.port} over rdma did not finish the transfer in time")
