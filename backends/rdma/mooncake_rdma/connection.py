"""The initiator's side of one queue pair: work requests posted by callers, as far as there is room, and ended in order."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from mooncake_core.errors import (
    AuthenticationFailed,
    PathFailed,
    ProtocolError,
    StaleSegment,
    TransferError,
    VersionMismatch,
)
from mooncake_core.transfer import handshake
from mooncake_core.transfer.contract import Kind, Operation
from mooncake_core.transfer.copying import copy
from mooncake_core.transfer.lanes import Lane
from mooncake_core.transfer.sockets import family_of, name_of, notice_vanished_host
from mooncake_rdma.conversation import WITHDRAWN, Connect, Connected, Refused, receive, send
from mooncake_rdma.messages import Message
from mooncake_rdma.paths import Rail, RdmaPath
from mooncake_rdma.requests import INLINE_BYTES, Ended, WorkRequest
from mooncake_rdma.room import Room
from mooncake_rdma.staging import Slot, Staging

if TYPE_CHECKING:
    from mooncake_rdma.verbs import Device, QueuePair

CONNECT_TIMEOUT_S: Final = 5.0
UNSIGNALLED: Final = 16
"""So many work requests may follow each other without a completion of their own."""

_log = logging.getLogger(__name__)


class Registered(Protocol):
    """Memory that was registered with all devices."""

    on_gpu: bool
    """No CPU may look at it."""
    shift: int
    """From its addresses to those that devices are to be given."""

    def local_key(self, place: int) -> int:
        """For the device of that place."""
        ...


class Nearness(NamedTuple):
    """Of memory to this host's devices, by their places. Empty: nothing is known of it, and all are as good."""

    preferred: frozenset[int] = frozenset()
    allowed: frozenset[int] = frozenset()
    """The preferred ones, and those that carry it when these have failed."""


@dataclass(slots=True, eq=False)
class Work:
    """An operation, on its way over one connection or the next."""

    operation: Operation
    path: RdmaPath
    messages: deque[Message[Registered]] = field(default_factory=deque)
    """Not posted yet."""
    near: Nearness = field(default_factory=Nearness)
    """Of its memory."""
    in_flight: int = 0
    tried: set[Rail] = field(default_factory=set)
    """That failed with it."""


@dataclass(slots=True)
class _Flight:
    work: Work
    message: Message[Registered]
    slot: Slot | None


class Connection:
    """One queue pair to a port of a peer, opened by a thread of its own. When it breaks it is done."""

    def __init__(
        self,
        device: Device,
        rail: Rail,
        path: RdmaPath,
        *,
        room: Room[Connection],
        secret: bytes | None,
        delivered: Callable[[int, float], None],
        lane: Lane,
        numbers: Iterator[int],
        withdrawn: Callable[[int], None],
    ) -> None:
        """`room` is that of the device; `delivered` is told of bytes and the seconds they took, while no lock is held here;
        `numbers` are those of work requests, of all connections; `withdrawn` is told which exports the peer has ended."""
        self.rail = rail
        self.lane = lane
        self.peer = name_of(path.host, path.port)
        self.pending_bytes = 0
        self._tell_delivered = delivered
        self._tell_withdrawn = withdrawn
        self._device = device
        self._room = room
        self._path = path
        self._secret = secret
        self._numbers = numbers
        self._lock = threading.Lock()
        self._works: dict[int, Work] = {}
        """All that has not ended, by operation."""
        self._unposted: deque[Work] = deque()
        self._flights: OrderedDict[int, _Flight] = OrderedDict()
        """By the number of the work request; they end in this order."""
        self._unsignalled = 0
        self._moved_at_s = time.monotonic()
        self._busy_since_s = 0.0
        """With the work that ends next."""
        self._staging = Staging(device)
        self._pair: QueuePair | None = None
        self._socket: socket.socket | None = None
        self._broken: TransferError | None = None
        self._opening = True
        self._ended = False
        self._withdrawal = bytearray()

    @property
    def name(self) -> str:
        """For messages: the peer, and the ports at both ends."""
        return f"{self.peer} over rdma ({self._device.port} to {self._path.ports[self.rail.theirs]})"

    @property
    def broken(self) -> TransferError | None:
        """Why it is to be ended; None while it is good."""
        return self._broken

    @property
    def queue_pair(self) -> int | None:
        """Its number; None while it is not open."""
        return self._pair.number if self._pair is not None else None

    @property
    def data_connection(self) -> socket.socket | None:
        """Once it is connected."""
        return self._socket

    def stands_still_since(self, moment_s: float) -> bool:
        """Whether something is under way, and nothing has begun or ended since then."""
        with self._lock:
            return bool(self._flights) and self._moved_at_s <= moment_s

    @property
    def has_others(self) -> bool:
        """Whether other transports take over something of what it carries."""
        with self._lock:
            return any(work.operation.has_others for work in self._works.values())

    def submit(self, works: Sequence[Work]) -> bool:
        """Takes works over; False where it is broken. They are posted here, as far as there is room. `broken` may be set
        afterwards: they are the connection's nevertheless."""
        with self._lock:
            if self._broken or self._ended:
                return False
            if not self._works:
                self._busy_since_s = time.monotonic()
            for work in works:
                self._works[work.operation.operation_id] = work
                self.pending_bytes += work.operation.length
            self._unposted += works
            self._post()
            return True

    def go_on(self) -> None:
        """There may be room on the device again."""
        with self._lock:
            if not self._broken:
                self._post()

    def open(self) -> None:
        """Connects, which may take seconds; to be called once, by a thread that can wait. Where that fails, `broken` is set."""
        try:
            self._open()
        except OSError as error:
            self.doom(self.failure(error.strerror or str(error), error.errno or errno.EIO))
        except (AuthenticationFailed, VersionMismatch, ProtocolError) as error:
            self.doom(self.failure(str(error), errno.EPROTO))
        except TransferError as error:
            if isinstance(error, StaleSegment):
                self.doom(error)
            else:
                self.doom(self.failure(error.message, error.detail.get("errno", errno.EIO)))
        except Exception as error:  # whatever it is, nobody may be left waiting
            _log.exception("the connection to %s failed", self.peer)
            self.doom(self.failure(repr(error), errno.EIO))
        with self._lock:
            self._opening = False
            if self._ended:
                self._close_socket()

    def doom(self, reason: TransferError) -> None:
        """It is to be ended; who opens it is interrupted."""
        with self._lock:
            self._broken = self._broken or reason
            if self._socket is not None:
                with contextlib.suppress(OSError):  # not connected yet
                    self._socket.shutdown(socket.SHUT_RDWR)

    def succeeded(self, number: int) -> list[Work]:
        """A work request completed, and so did those before it; the works that have ended with them."""
        with self._lock:
            now = self._moved_at_s = time.monotonic()
            ended = self._completed(number)
            busy_s = now - self._busy_since_s
            if ended:
                self._busy_since_s = now
            if not self._broken:
                self._post()
        self._tell_delivered(sum([work.operation.length for work in ended]), busy_s)
        return ended

    def failed(self, ended: Ended) -> tuple[list[Work], Work, TransferError]:
        """A work request failed: the works that have ended before, the one that is to blame, and why."""
        with self._lock:
            done = self._completed(ended.number - 1)
            to_blame = self._flights[ended.number].work
            state = self._pair.state if self._pair else "closed"
        return done, to_blame, self.failure(f"{ended.status}, the queue pair is in {state}", _errno_of(ended.status))

    def holds(self, number: int) -> bool:
        """Whether a work request is under way here."""
        with self._lock:
            return number in self._flights

    def hear(self) -> bool:
        """There is something on the data connection; whether that still stands."""
        sock = self._socket
        assert sock is not None
        try:
            data = sock.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._withdrawal += data
        whole = len(self._withdrawal) // WITHDRAWN.size * WITHDRAWN.size
        for (number,) in WITHDRAWN.iter_unpack(self._withdrawal[:whole]):
            self._tell_withdrawn(number)
        del self._withdrawal[:whole]
        return bool(data)

    def earliest_deadline_s(self) -> float | None:
        """Of what is under way."""
        with self._lock:
            return min((work.operation.deadline_s for work in self._works.values()), default=None)

    def expired(self, now: float) -> tuple[list[Work], bool]:
        """Works that are late and can be given up, for the device knows nothing of them; and whether others are late that it
        works on, so that the connection has to end."""
        with self._lock:
            late = [work for work in self._works.values() if work.operation.deadline_s <= now]
            idle = [work for work in late if not work.in_flight]
            for work in idle:
                self._forget(work)
                self._unposted.remove(work)
            return idle, len(idle) < len(late)

    def end(self) -> list[Work]:
        """Closes the queue pair: from now on no memory is touched for it. The works that are left."""
        with self._lock:
            self._ended = True
            self._broken = self._broken or self.failure("it was closed", errno.ESHUTDOWN)
            if self._pair is not None:
                self._pair.close()
                self._pair = None
            if not self._opening:  # or else the thread that opens it closes it
                self._close_socket()
            self._staging.close()
            left = list(self._works.values())
            self._works.clear()
            self._unposted.clear()
            self._room.give_back(len(self._flights))
            self._flights.clear()
            self.pending_bytes = 0
            return left

    def _open(self) -> None:
        sock = socket.socket(family_of(self._path.host), socket.SOCK_STREAM)
        with self._lock:
            self._socket = sock  # from here on, `doom` interrupts
            if self._broken:
                raise ConnectionAbortedError(errno.ECONNABORTED, "ended before it was connected")
        sock.settimeout(CONNECT_TIMEOUT_S)
        sock.connect((self._path.host, self._path.port))
        sock.settimeout(handshake.TIMEOUT_S)
        handshake.introduce(sock, self._secret, self.peer)
        pair = self._device.queue_pair(self.rail.fabric)
        try:
            self._agree(sock, pair)
        except BaseException:
            pair.close()
            raise
        with self._lock:
            if self._ended:
                pair.close()
                return
            self._pair = pair
            self._busy_since_s = time.monotonic()
            self._post()

    def _agree(self, sock: socket.socket, pair: QueuePair) -> None:
        send(sock, Connect(self._path.incarnation, self.rail.theirs, str(self.rail.fabric), pair.handle))
        answer = receive(sock)
        if isinstance(answer, Refused):
            if answer.is_stale:
                raise StaleSegment(f"{self.peer} was started anew: ask it for a new descriptor")
            raise PathFailed(f"it refused: {answer.reason}", errno=answer.errno)
        if not isinstance(answer, Connected):
            raise ProtocolError(f"expected Connected, found {type(answer).__name__}")
        pair.connect(answer.handle)
        notice_vanished_host(sock)
        sock.settimeout(None)

    def _post(self) -> None:
        """What there is room for. Locked."""
        if self._pair is None:
            return
        try:
            requests = [self._launched(work, slot) for work, slot in self._ready()]
            if requests:
                self._pair.post(requests)
        except TransferError as error:
            self._broken = self.failure(error.message, error.detail.get("errno", errno.EIO))
        except Exception as error:  # whatever it is, nobody may be left waiting
            _log.exception("the connection to %s failed", self.peer)
            self._broken = self.failure(repr(error), errno.EIO)

    def _ready(self) -> Iterator[tuple[Work, Slot | None]]:
        """Works whose next message can be posted, with the slot it goes through."""
        waiting: list[Work] = []
        while self._unposted and len(self._flights) < self._device.send_depth:
            work = self._unposted[0]
            message = work.messages[0]
            slot = None
            if message.is_barrier and work.in_flight:
                waiting.append(self._unposted.popleft())
                continue
            if message.is_staged and not self._is_inline(work, message):
                slot = self._staging.take()
                if slot is None:
                    waiting.append(self._unposted.popleft())
                    continue
            if not self._room.take(self, has_some=bool(self._flights)):
                if slot is not None:
                    self._staging.give_back(slot)
                break
            yield work, slot
        self._unposted.extendleft(reversed(waiting))

    def _launched(self, work: Work, slot: Slot | None) -> WorkRequest:
        """The request of a work's next message, which is under way from now on."""
        message = work.messages.popleft()
        is_last = not work.messages
        if is_last:
            self._unposted.popleft()
        is_read = work.operation.kind is Kind.READ
        is_inline = self._is_inline(work, message)
        if slot is not None and not is_read:
            copy([segment.view for segment in message.segments], [slot.view[: message.num_bytes]], write=True)
        self._unsignalled += 1
        must_tell = is_last or slot is not None or work.messages[0].is_barrier or self._unsignalled >= UNSIGNALLED
        if must_tell:
            self._unsignalled = 0
        number = next(self._numbers)
        if not self._flights:
            self._moved_at_s = time.monotonic()
        self._flights[number] = _Flight(work, message, slot)
        work.in_flight += 1
        return WorkRequest(
            number=number,
            is_read=is_read,
            segments=self._segments(message, slot),
            remote_address=work.path.remote_address(message.offset, message.key),
            remote_key=work.path.keys[self.rail.theirs][message.key],
            is_signalled=must_tell,
            is_inline=is_inline,
        )

    def _segments(self, message: Message[Registered], slot: Slot | None) -> list[tuple[int, int, int]]:
        if slot is not None:
            return [(slot.address, message.num_bytes, self._staging.local_key)]
        return [
            (address, view.nbytes, 0)
            if region is None
            else (address + region.shift, view.nbytes, region.local_key(self.rail.ours))
            for view, address, region in message.segments
        ]

    def _is_inline(self, work: Work, message: Message[Registered]) -> bool:
        """The bytes go with the request: whose memory is registered does not matter then."""
        return (
            work.operation.kind is Kind.WRITE
            and message.num_bytes <= INLINE_BYTES
            and len(message.segments) <= self._device.most_segments
            and not any(region.on_gpu for _, _, region in message.segments if region is not None)
        )

    def _completed(self, number: int) -> list[Work]:
        ended = []
        before = len(self._flights)
        while self._flights and next(iter(self._flights)) <= number:
            _, flight = self._flights.popitem(last=False)
            work, slot = flight.work, flight.slot
            if slot is not None:
                if work.operation.kind is Kind.READ:
                    pieces = [segment.view for segment in flight.message.segments]
                    copy(pieces, [slot.view[: flight.message.num_bytes]], write=False)
                self._staging.give_back(slot)
            work.in_flight -= 1
            if not work.in_flight and not work.messages:
                self._forget(work)
                ended.append(work)
        self._room.give_back(before - len(self._flights))
        return ended

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _forget(self, work: Work) -> None:
        del self._works[work.operation.operation_id]
        self.pending_bytes -= work.operation.length

    def failure(self, reason: str, number: int) -> PathFailed:
        """What went wrong here, with peer, ports and errno."""
        return PathFailed(f"{self.name}: {reason}", peer=self.peer, path="rdma", errno=number)


def _errno_of(status: str) -> int:
    return {"RETRY_EXC_ERR": errno.ETIMEDOUT, "REM_ACCESS_ERR": errno.EACCES, "WR_FLUSH_ERR": errno.ECONNABORTED}.get(
        status, errno.EIO
    )
