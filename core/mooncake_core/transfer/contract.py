"""What a transport is. A plugin author reads this page, subclasses `Transport`, and runs the suite in
`mooncake_core.testing.transport_contract`.

Transfers are one-sided: the initiator posts reads and writes against memory that a peer has exported, and no code of
the peer's application takes part. A transport may run threads or processes of its own for that; `post` never blocks for
the network; completions are delivered from its threads, or collected with `poll`, for which `fileno()` becomes readable.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from msgspec import Struct

from mooncake_core.errors import TransferError
from mooncake_core.transfer.lanes import Lane, Lanes
from mooncake_core.transfer.pinned import PinnedBuffers
from mooncake_core.transfer.topology import Priority
from mooncake_core.transfer.weights import Weights


class Kind(enum.IntEnum):
    """Direction of a transfer, seen from the initiator."""

    READ = 1
    WRITE = 2


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a transport can do, as data; the engine asks no names."""

    same_host_only: bool = False
    """Peers on other hosts cannot be reached."""
    same_process_only: bool = False
    """Only memory of the process itself can be reached."""
    is_rdma: bool = False
    """NICs move the bytes: what perftest reaches is the limit, not a socket."""
    in_order: bool = False
    """The bytes of one operation land in the order of its ranges: who finds the last one written finds all written, also after
    the initiator has died midway."""
    device_memory: bool = False
    """Memory of a device (a GPU) may be registered: views whose bytes no CPU may look at, as `device_memory` makes them. The
    others never see such: the engine copies through memory of the host."""


class TlsFiles(Struct, frozen=True):
    """Files in PEM format, by which both ends of a connection know each other as members of the cluster."""

    certificate: str
    """Of this host, with those between it and the authority."""
    key: str
    ca: str
    """The authority's certificate."""


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """What the engine gives a transport when it makes it."""

    owner: str
    """Name of this process, for messages."""
    host_id: str
    incarnation: int
    listen_host: str = "127.0.0.1"
    listen_port: int = 0
    """0 is any free port; the descriptor carries the real one."""
    further_hosts: Sequence[str] = ()
    """Addresses of further NICs of this host, to listen on as well."""
    secret: bytes | None = None
    """Shared by the cluster; None means no authentication (loopback)."""
    tls: TlsFiles | None = None
    """Connections over a network are to be encrypted, by a transport whose connections are sockets."""
    connections_per_peer: int = 1
    topology: Mapping[str, Priority] = field(default_factory=dict)
    """What configuration says of NICs by location of memory, instead of what sysfs shows."""
    weights: Weights = field(default_factory=Weights)
    """How much configuration wants of each network or NIC."""
    lanes: Lanes = field(default_factory=Lanes)
    """Where a transport that has several ways to its peers names them, for `Completion.lane`."""
    busy_poll_s: float = 0.0
    """How long to look for what a peer says next before sleeping, where a thread waits for that alone."""
    pinned: PinnedBuffers = field(default_factory=PinnedBuffers)
    """Through which a transport copies that is capable of device memory, but does not reach it itself."""
    deliver: Callable[[Completion], None] | None = None
    """Where given, takes a completion in the thread that found it, instead of `poll`: a transport with threads of its own
    saves the way over another one. To be called without a lock that `post` takes."""


class Range(Struct, frozen=True, gc=False):
    """Bytes [offset, offset + length) of a registered region."""

    offset: int
    length: int


class Operation(Struct, frozen=True):
    """One transfer between local pieces and remote ranges of the same total length: scatter and gather at both ends.

    Both are taken in order, and need not be cut alike. The pieces are written to for a READ, and read from for a WRITE.
    They belong to the transport until the operation's completion was collected; the caller must not touch (READ) or
    change (WRITE) them before.
    """

    operation_id: int
    kind: Kind
    pieces: tuple[memoryview, ...]
    path: bytes
    """The peer's descriptor for this transport, as its `export` returned it."""
    ranges: tuple[Range, ...]
    """Offsets count from the start of the exported region (not of one of its exported ranges)."""
    deadline_s: float
    """time.monotonic() after which the operation fails with DeadlineExceeded."""
    in_order: bool = False
    """Its ranges have to land one after the other; asked only of a transport that is capable of it."""
    has_others: bool = False
    """Other transports carry it where this one fails: what failed lately need not be tried again, nor what stands still be
    waited for."""

    @property
    def length(self) -> int:
        """Bytes to move."""
        pieces = self.pieces
        return pieces[0].nbytes if len(pieces) == 1 else sum([piece.nbytes for piece in pieces])


class Completion(Struct, frozen=True):
    """How an operation ended. `error` None: all bytes have moved, and for a WRITE are visible at the peer."""

    operation_id: int
    error: TransferError | TimeoutError | None = None
    lane: Lane | None = None
    """What carried it, or failed to: of the settings' `lanes`. None where the transport has but one way."""


class Transport(ABC):
    """One way to move bytes between processes. All methods may be called from any thread.

    Ordering: operations complete in any order. Two writes to overlapping ranges that are in flight together leave either
    content. A write that must be seen after another is posted after the other's completion.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities] = Capabilities()
    num_ways: int = 1
    """How many connections to a peer may carry parts of a transfer at the same time."""

    @abstractmethod
    def __init__(self, settings: TransportSettings) -> None:
        """Makes it ready to export and to post.

        Raises:
            PluginUnavailable: something it needs is missing on this machine; says what to install.
            TransferError: it cannot listen; names address and errno.
        """

    @abstractmethod
    def register(self, memory: memoryview, descriptor: int | None = None) -> int:
        """Makes local memory known (pins it, where that is needed) and returns a handle.

        The memory must be writable, contiguous bytes, and must stay alive until `unregister`. `descriptor` is that of the
        file (a memfd) that the memory maps from its beginning, where it has one; it stays the caller's. Memory of a device
        comes only where the transport is capable of it.
        """

    @abstractmethod
    def unregister(self, handle: int) -> None:
        """Forgets a region; its exports are withdrawn first."""

    @abstractmethod
    def export(self, handle: int, *, writable: bool, ranges: Sequence[Range] | None = None) -> bytes | None:
        """Lets peers read (and write, when writable) the region, or only some ranges of it.

        Returns the opaque path for peers; None where this memory cannot be reached this way. Every export has a key of
        its own, so that each is withdrawn for itself.
        """

    @abstractmethod
    def withdraw(self, path: bytes) -> None:
        """Ends an export. When it returns, no operation that names this path touches the memory any more; such
        operations complete with StaleSegment at their initiator. Unknown paths are ignored."""

    @abstractmethod
    def post(self, operations: Sequence[Operation]) -> None:
        """Starts transfers. Errors are completions: a dead peer is PathFailed with peer and errno, a withdrawn or
        unknown key StaleSegment, a range outside of the export OutOfRange, a wrong secret AuthenticationFailed wrapped
        in PathFailed. Every posted operation gets exactly one completion, by its deadline at the latest; after `close`
        that is PathFailed too. Should it raise all the same, the engine fails all that has no completion yet: nothing may
        touch the pieces of those any more."""

    def move(self, operations: Sequence[Operation]) -> Sequence[Completion | None]:
        """Carries operations out in the calling thread, for one that would only wait: no other thread has to wake up.

        Returns one completion each, in order, when all have ended; `poll` and `deliver` do not see them. None for an
        operation that was not touched, and is to be posted. Also when it raises (an interrupt), nothing touches the
        pieces any more. By default none is touched.
        """
        return [None] * len(operations)

    def reaches_devices_of(self, pieces: Sequence[memoryview]) -> bool:
        """Whether it takes an operation with these pieces, some of which lie on a device, as it is. Where it does not, it is
        given memory of the host in their place."""
        return False

    @abstractmethod
    def poll(self) -> list[Completion]:
        """The completions since the last call, but for those delivered; never blocks."""

    @abstractmethod
    def fileno(self) -> int:
        """A descriptor that is readable while `poll` has something to return."""

    @abstractmethod
    def close(self) -> None:
        """Completes what is in flight with PathFailed, withdraws all exports, frees sockets and threads. Idempotent."""
