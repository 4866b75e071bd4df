"""A process that takes part in transfers by name: registers memory that others reach, opens other endpoints, moves bytes between
the two, and tells them so (FAST'25, section 3.2.1 and listing 1).

    with Endpoint("10.0.0.1") as here:
        peer = here.open("10.0.0.2:41234")
        here.write(peer, tensor, peer_address, notify=Notification("layer", "17"))

Names are `host:port` of an endpoint's control port, where peers learn what is registered; bytes take the best path that both
ends have.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Final, NamedTuple, TypeVar, Unpack

from msgspec import Struct

from mooncake_core.address import HostPort, is_loopback, is_wildcard
from mooncake_core.errors import (
    ConfigError,
    MooncakeError,
    NotRegistered,
    OutOfRange,
    PathFailed,
    StaleSegment,
    TransferError,
)
from mooncake_core.transfer.addresses import AddressMap, Span, address_of, usable
from mooncake_core.transfer.asking import Asking
from mooncake_core.transfer.batch import Batch, State, Transfer, TransferRequest
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.engine import Region, TransferEngine
from mooncake_core.transfer.host import default_host_id
from mooncake_core.transfer.memory import Memory, parts_of, view_of_memory
from mooncake_core.transfer.neighbours import joined
from mooncake_core.transfer.options import PathOptions
from mooncake_core.transfer.peer import TOGETHER_BYTES, Peer, Remote, by_segment
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.wire.auth import ClusterKey
from mooncake_core.wire.loop_thread import LoopThread
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.envelope import Done, Ping
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.segments import Notify, OpenSegment, RegisteredMemory, SegmentOpened
from mooncake_core.wire.server import Call, Handler, Server

ASK_S: Final = 10.0
"""A peer that says nothing for so long is not there."""
MOST_NOTIFICATIONS: Final = 1 << 16
TRANSPORTS: Final = ("shm", "tcp")

M = TypeVar("M")
_log = logging.getLogger(__name__)


class Notification(NamedTuple):
    """What one application tells another."""

    name: str
    message: str


class Request(Struct, frozen=True):
    """One transfer. `local` is a memory or a gather list; `remote` an address, or a scatter list in one of the peer's regions."""

    kind: Kind
    peer: Peer
    local: Memory | Sequence[Memory]
    remote: Remote


class _Registered(NamedTuple):
    region: Region
    segment: SegmentDescriptor
    owner: object
    """Kept alive."""


class Endpoint:
    """All methods may be called from any thread, and leave the interpreter to others while bytes move."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        *,
        port: int = 0,
        key: ClusterKey | None = None,
        insecure: bool = False,
        host_id: str | None = None,
        timeout_s: float = 30.0,
        handlers: Mapping[type, Handler] | None = None,
        **paths: Unpack[PathOptions],
    ) -> None:
        """Listens at `host`, the address by which peers reach it; port 0 takes a free one. `insecure`: without a key, others
        than this host are served as well; `host_id`: endpoints with the same one may share memory; `timeout_s` for transfers
        that do not say theirs; `handlers` answer further questions of peers (`ask`), on a thread of the endpoint's; `paths`:
        as PathOptions says, the transports TRANSPORTS unless others are named.

        Raises:
            ConfigError: the host cannot be listened on, or is open to others without a key.
            PluginUnknown, PluginUnavailable: of a transport.
            WireError: the port is taken.
        """
        paths.setdefault("transports", TRANSPORTS)
        hosts = (host, *paths.get("further_hosts", ()))
        address, *paths["further_hosts"] = [_resolved(name) for name in hosts]
        if key is None and not insecure and not all(map(is_loopback, (address, *paths["further_hosts"]))):
            listed = ", ".join(hosts)
            raise ConfigError(
                f"memory registered at {listed} would be open to everybody who can reach it: give a cluster key "
                "(`mooncake auth init` writes one), or say that the network is trusted"
            )
        self.timeout_s = timeout_s
        self.incarnation = secrets.randbits(63)
        """Of this endpoint: peers that knew another one under its name notice."""
        self._lock = threading.Lock()
        self._registered: AddressMap[_Registered] = AddressMap()
        self._notifications: deque[Notification] = deque()
        self._notified = threading.Condition(self._lock)
        self._closed = False
        self._engine = TransferEngine(
            owner=host,
            host_id=host_id or default_host_id(),
            incarnation=self.incarnation,
            listen_host=address,
            secret=key.secret if key else None,
            timeout_s=timeout_s,
            **paths,
        )
        self._loop = LoopThread(f"endpoint-{host}")
        self._asking = Asking(f"endpoint-{host}", key, self._loop)
        own: dict[type, Handler] = {OpenSegment: self._on_open, Notify: self._on_notify}
        self._server = Server(f"endpoint-{host}", {**own, **(handlers or {})}, key=key, door=True)
        try:
            self.port = self._loop.run(self._server.start(HostPort(address, port))).port
        except BaseException:
            self.close()
            raise
        self.name = str(HostPort(host, self.port))
        """By which peers open it."""

    def register_memory(self, memory: Memory, *, descriptor: int | None = None, writable: bool = True) -> int:
        """Lets peers read, and write where `writable`, a memory; returns its address, by which they name it. It is kept alive
        until it is unregistered; what a Span names, the caller keeps. `descriptor`: of the memfd that it maps, where it has one
        (as from `allocate_memory`), so that processes of this host copy straight into it.

        Raises:
            MemoryOverlaps: a part of it is registered already.
            OutOfRange: it is empty, read-only, not contiguous, or memory that neither the CPU nor a GPU's driver reads.
            TransferError: a NIC cannot register it; says why.
        """
        view = view_of_memory(memory)
        if not view.nbytes:
            raise OutOfRange("expected memory of at least one byte")
        address = address_of(view)
        region = self._engine.register_memory(view, descriptor)
        try:
            entry = _Registered(region, self._engine.export(region, writable=writable), memory)
            self._registered.add(Span(address, view.nbytes), entry)
        except BaseException:
            self._engine.unregister_memory(region)
            raise
        return address

    def unregister_memory(self, address: int) -> None:
        """Forgets memory that begins there; returns when no peer touches it any more.

        Raises:
            NotRegistered: there is none.
        """
        entry = self._registered.remove(address)
        if entry is None:
            raise NotRegistered(f"no memory that begins at {address:#x} was registered")
        self._engine.unregister_memory(entry.region)

    def is_registered(self, view: memoryview) -> bool:
        """Whether all of it lies in one registered memory."""
        address = address_of(view)
        found = self._registered.find(address)
        return found is not None and address + view.nbytes <= found[0] + found[1]

    def allocate_memory(self, num_bytes: int) -> SharedMemory:
        """New registered memory (`.view`), which peers on this host reach without a socket.

        Raises:
            OSError: there is none left.
        """
        memory = SharedMemory("endpoint", num_bytes)
        try:
            self.register_memory(memory.view, descriptor=memory.descriptor)
        except BaseException:
            memory.close()
            raise
        return memory

    def free_memory(self, memory: SharedMemory) -> None:
        """Unregisters and gives back what allocate_memory made."""
        self.unregister_memory(address_of(memory.view))
        memory.close()

    def view(self, address: int, length: int) -> memoryview | None:
        """Local memory by its address: registered, or else any that the CPU can read. None where there is none, or where
        it goes beyond what was registered there. What was registered may be a GPU's (`device_memory`)."""
        found = self._registered.find(address)
        if found is None:
            return usable(address, length)
        offset = address - found[0]
        return found[2].region.memory[offset : offset + length] if offset + length <= found[1] else None

    def views(self, addresses: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        """As view, for several.

        Raises:
            OutOfRange: one of them is none; names it.
        """
        found: list[memoryview] = []
        memory, start, end = memoryview(b""), 0, 0
        for address, length in zip(addresses, lengths, strict=True):
            if not (start <= address and address + length <= end):
                known = self._registered.find(address)
                if known is None:
                    found.append(view_of_memory(Span(address, length)))
                    continue
                memory, start, end = known[2].region.memory, known[0], known[0] + known[1]
                if address + length > end:
                    raise OutOfRange(f"{length} bytes at {address:#x} go beyond what was registered there")
            found.append(memory[address - start : address - start + length])
        return found

    def neighbours(
        self, peer: Peer, addresses: Sequence[int], lengths: Sequence[int], remote: Sequence[int]
    ) -> tuple[list[memoryview], list[int]]:
        """As views, and where of the peer's memory each goes or comes from: for `move` and `start`. What goes on where the one
        before ended, here and there and within registered memory, is one with it.

        Raises as views.
        """
        if len(addresses) == 1:  # a single one is to be quick
            return self.views(addresses, lengths), [*remote]
        near, sizes, far = joined(addresses, lengths, remote, partial(self._room, peer))
        return self.views(near, sizes), far

    def open(self, name: str, *, timeout_s: float | None = None) -> Peer:
        """Another endpoint, by its name.

        Raises:
            ConfigError: that is no name.
            PeerUnreachable, DeadlineExceeded: nobody answers there.
            AuthenticationFailed, VersionMismatch: it is none of ours.
        """
        limit_s = ASK_S if timeout_s is None else timeout_s
        opened = self.ask(name, OpenSegment(), SegmentOpened, limit_s)
        return Peer(name, opened, lambda peer: self.ask(peer.name, OpenSegment(), SegmentOpened, ASK_S))

    async def open_async(self, name: str, *, timeout_s: float | None = None) -> Peer:
        """As open."""
        return await asyncio.to_thread(self.open, name, timeout_s=timeout_s)

    def probe(self, name: str, *, timeout_s: float = ASK_S) -> None:
        """Asks whether an endpoint is there. Raises as open."""
        self.ask(name, Ping(), Done, timeout_s)

    def allocate_batch(self, capacity: int) -> Batch:
        """A batch for up to `capacity` requests (listing 1: allocateBatchID)."""
        return self._engine.allocate_batch(capacity)

    def submit(
        self,
        batch: Batch,
        requests: Sequence[Request],
        *,
        notify: Notification | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Starts transfers; returns at once. What fails shows in `status`. The memory must not be touched (READ) or changed
        (WRITE) until then. `notify` is told to the peers of these requests once all of the batch has ended well.

        Raises:
            OutOfRange: the batch has no room, or a request's ends do not fit together.
            NotRegistered, StaleSegment, WireError: of a peer; nothing was started.
        """
        planned = [self._planned(request) for request in requests]
        peers = {id(request.peer): request.peer for request in requests}.values()
        self._submit(batch, planned, peers, notify, timeout_s)

    def status(self, batch: Batch) -> list[tuple[State, TransferError | TimeoutError | None]]:
        """State and error of each request, in the order submitted."""
        return self._engine.status(batch)

    def wait(self, batch: Batch, timeout_s: float | None = None) -> bool:
        """Whether all requests have ended, after waiting for that at most timeout_s."""
        return self._engine.wait(batch, timeout_s)

    def free(self, batch: Batch) -> None:
        """Gives a finished batch back.

        Raises:
            TransferError: requests of it are still under way.
        """
        self._engine.free(batch)

    def read(
        self,
        peer: Peer,
        local: Memory | Sequence[Memory],
        remote: Remote,
        *,
        timeout_s: float | None = None,
    ) -> Transfer:
        """Reads a peer's memory into local memory; how it went.

        Raises:
            TransferError, DeadlineExceeded, WireError: it failed; says why.
        """
        return self.transfer(Request(Kind.READ, peer, local, remote), timeout_s=timeout_s)

    def write(
        self,
        peer: Peer,
        local: Memory | Sequence[Memory],
        remote: Remote,
        *,
        notify: Notification | None = None,
        timeout_s: float | None = None,
    ) -> Transfer:
        """Writes local memory to a peer's; how it went. All bytes are visible there when it returns, and when `notify` comes.
        Raises as read; a WireError with `notify` may mean that the bytes are there and only that was not told.
        """
        return self.transfer(Request(Kind.WRITE, peer, local, remote), notify=notify, timeout_s=timeout_s)

    def transfer(
        self, request: Request, *, notify: Notification | None = None, timeout_s: float | None = None
    ) -> Transfer:
        """Carries one request out, in the calling thread where the path allows it. Raises as read."""
        pieces = self._pieces(request)

        def once(left_s: float) -> list[Transfer]:
            segment, where = request.peer.ranges(pieces, request.remote)
            return self._engine.move(request.kind, segment, [(pieces, where)], timeout_s=left_s)

        (moved,) = self._surely(request.peer, once, timeout_s)
        if notify is not None:
            self.notify(request.peer, notify)
        return moved

    async def transfer_async(
        self, request: Request, *, notify: Notification | None = None, timeout_s: float | None = None
    ) -> Transfer:
        """As transfer, for an event loop: other tasks run meanwhile. Cancelling it waits until nothing uses the memory."""
        pieces = self._pieces(request)
        segment, where = await asyncio.to_thread(request.peer.ranges, pieces, request.remote)
        (moved,) = await self._engine.transfer(request.kind, segment, [(pieces, where)], timeout_s=timeout_s)
        if moved.error is not None:
            request.peer.doubt()
            raise moved.error
        if notify is not None:
            await asyncio.to_thread(self.notify, request.peer, notify)
        return moved

    def move(
        self,
        kind: Kind,
        peer: Peer,
        pieces: Sequence[memoryview],
        addresses: Sequence[int],
        *,
        timeout_s: float | None = None,
    ) -> list[Transfer]:
        """Many pieces at once, each from or to an address of the peer; the quickest way for many small ones.

        Raises as read: for the first that failed.
        """

        def once(left_s: float) -> list[Transfer]:
            moved: list[Transfer] = []
            for segment, transfers in by_segment(peer.ends(pieces, addresses)):
                moved += self._engine.move(kind, segment, transfers, timeout_s=left_s)
            return moved

        return self._surely(peer, once, timeout_s)

    def start(
        self,
        kind: Kind,
        peer: Peer,
        pieces: Sequence[memoryview],
        addresses: Sequence[int],
        *,
        timeout_s: float | None = None,
    ) -> Batch:
        """As `move`, but returns at once; the batch has fewer requests than there are pieces. Raises as submit."""
        planned = [
            TransferRequest(kind, tuple(ends.near), ends.segment, tuple(ends.far))
            for ends in peer.ends(pieces, addresses)
        ]
        batch = self.allocate_batch(len(planned))
        self._submit(batch, planned, [peer], None, timeout_s)
        return batch

    def notify(self, peer: Peer, notification: Notification) -> None:
        """Tells a peer something, without a transfer; it has arrived when this returns.

        Raises:
            WireError: it cannot be reached.
        """
        message = Notify(name=notification.name, message=notification.message)
        self.ask(peer.name, message, Done, ASK_S)

    def take_notifications(self, timeout_s: float = 0.0) -> list[Notification]:
        """All that peers told since the last call, in the order it came; waits up to timeout_s for the first."""
        with self._notified:
            self._notified.wait_for(lambda: self._notifications or self._closed, timeout_s)
            taken = list(self._notifications)
            self._notifications.clear()
        return taken

    def close(self) -> None:
        """Fails what is under way, withdraws all memory, ends all threads. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._notified.notify_all()
        self._engine.close()
        self._asking.close()
        self._loop.close(self._close_wire)

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _room(self, peer: Peer, address: int, there: int) -> int:
        """Bytes that may go as one from there on: within one region at each end."""
        known = self._registered.find(address)
        return min(known[0] + known[1] - address, peer.room(there), TOGETHER_BYTES) if known else 0

    def _pieces(self, request: Request) -> tuple[memoryview, ...]:
        pieces = tuple([self._piece(part) for part in parts_of(request.local)])
        if request.kind is Kind.READ and any(piece.readonly for piece in pieces):
            raise OutOfRange("expected memory that can be written to, to read into")
        return pieces

    def _piece(self, memory: Memory) -> memoryview:
        if isinstance(memory, Span):
            return self.views([memory.address], [memory.length])[0]
        return view_of_memory(memory)

    def _planned(self, request: Request) -> TransferRequest:
        pieces = self._pieces(request)
        segment, where = request.peer.ranges(pieces, request.remote)
        return TransferRequest(request.kind, pieces, segment, tuple(where))

    def _submit(
        self,
        batch: Batch,
        planned: Sequence[TransferRequest],
        peers: Iterable[Peer],
        notify: Notification | None,
        timeout_s: float | None,
    ) -> None:
        self._engine.submit(batch, planned, timeout_s, on_done=partial(self._batch_ended, [*peers], notify))

    def _batch_ended(self, peers: Sequence[Peer], notify: Notification | None, all_well: bool) -> None:
        for peer in peers:
            if not all_well:
                peer.doubt()
            elif notify is not None:
                self._tell(peer, notify)

    def _surely(self, peer: Peer, once: Callable[[float], list[Transfer]], timeout_s: float | None) -> list[Transfer]:
        """Tries again where the peer has registered its memory anew meanwhile."""
        until = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        moved = once(until - time.monotonic())
        error = _first_error(moved)
        if isinstance(error, StaleSegment | PathFailed) and time.monotonic() < until and self._has_changed(peer, error):
            moved = once(until - time.monotonic())
            error = _first_error(moved)
        if error is not None:
            peer.doubt()
            raise error
        return moved

    def _has_changed(self, peer: Peer, error: TransferError) -> bool:
        try:
            return peer.refresh()
        except StaleSegment:
            raise
        except MooncakeError as reason:
            raise error from reason

    def _tell(self, peer: Peer, notification: Notification) -> None:
        """Without waiting."""
        message = Notify(name=notification.name, message=notification.message)

        def on_end(error: MooncakeError | None) -> None:
            if error is not None:
                _log.warning("%s was not told %s: %s", peer.name, notification.name, error)

        self._asking.tell(peer.name, message, on_end, ASK_S)

    def ask(self, name: str, message: Message, reply_type: type[M], timeout_s: float) -> M:
        """Any question to another endpoint, which has a handler for it. Raises as open, and what the handler raised."""
        return self._asking.ask(name, message, reply_type, timeout_s)

    def _on_open(self, message: OpenSegment, call: Call) -> SegmentOpened:
        memories = [RegisteredMemory(address=span.address, segment=entry.segment) for span, entry in self._registered]
        return SegmentOpened(incarnation=self.incarnation, memories=memories)

    def _on_notify(self, message: Notify, call: Call) -> Done:
        with self._notified:
            if len(self._notifications) >= MOST_NOTIFICATIONS:
                raise OutOfRange(f"{self.name} has {MOST_NOTIFICATIONS} notifications that nobody took")
            self._notifications.append(Notification(message.name, message.message))
            self._notified.notify_all()
        return Done()

    async def _close_wire(self) -> None:
        await self._server.close()
        await self._asking.close_wire()


def _first_error(moved: Sequence[Transfer]) -> TransferError | TimeoutError | None:
    return next((transfer.error for transfer in moved if transfer.error is not None), None)


def _resolved(host: str) -> str:
    """The address to listen on."""
    if is_wildcard(host):
        raise ConfigError(f"expected the address by which peers reach this host, got {host}, which means all of them")
    try:
        return str(socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ConfigError(f"{host} is no host that can be found: {error}") from error
