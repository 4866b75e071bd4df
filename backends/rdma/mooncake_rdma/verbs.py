"""Devices, memory regions and queue pairs, over pyverbs: the only file that imports it. Every call holds the interpreter lock, so
none of them may wait: completions are fetched when a descriptor says that there are some."""

from __future__ import annotations

import errno
import ipaddress
import itertools
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final

from mooncake_core.errors import PathFailed, TransferError
from mooncake_core.transfer.device import DmaBuf
from mooncake_core.units import format_size
from mooncake_rdma.event_descriptors import with_descriptor
from mooncake_rdma.pinning import advice, refusal
from mooncake_rdma.ports import Fabric, Port, is_active
from mooncake_rdma.pyverbs_location import make_pyverbs_importable
from mooncake_rdma.requests import INLINE_BYTES, Ended, PortHandle, WorkRequest

make_pyverbs_importable()

try:
    from pyverbs import libibverbs_enums as enums
except ImportError:  # of rdma-core before 58; both have each constant in its enumeration
    from pyverbs import enums
from pyverbs import mr as memory_regions  # noqa: E402
from pyverbs.addr import GID, AHAttr, GlobalRoute  # noqa: E402
from pyverbs.cq import CQ, CompChannel  # noqa: E402
from pyverbs.device import Context  # noqa: E402
from pyverbs.pd import PD  # noqa: E402
from pyverbs.pyverbs_error import PyverbsRDMAError  # noqa: E402
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr  # noqa: E402
from pyverbs.wr import SGE, SendWR  # noqa: E402

MR: Final[Any] = memory_regions.MR
DmaBufMR: Final[Any] = getattr(memory_regions, "DmaBufMR", None)  # rdma-core before 34 has none
SEND_DEPTH: Final = 128
"""Work requests under way on one queue pair."""
MOST_SEGMENTS: Final = 16
COMPLETIONS: Final = 8192
"""That the queue of a device has room for. Half of them may be under way: in the other half are those of queue pairs that were
closed since."""
MOST_READS: Final = 16
"""Under way at once, of one queue pair: the NIC keeps state for each."""
HOP_LIMIT: Final = 64
TIMEOUT_EXPONENT: Final = 14
"""A packet that is not acknowledged is sent again after 4.096 µs * 2^14 = 67 ms, RETRIES times: a peer that is gone is noticed
within a second or a few, by device."""
RETRIES: Final = 7
_log = logging.getLogger(__name__)


class MemoryRegion:
    """Pinned memory that a device may touch."""

    __slots__ = ("_region", "local_key", "remote_key", "shift")

    def __init__(self, region: Any, shift: int = 0) -> None:
        self._region = region
        self.shift = shift
        """From the process's addresses to those that the device is to be given."""
        self.local_key: int = region.lkey
        self.remote_key: int = region.rkey

    def close(self) -> None:
        """When it returns, the device does not touch the memory through these keys any more. Idempotent."""
        _close(self._region)


class Device:
    """One port of a device, opened. Any thread."""

    def __init__(self, port: Port) -> None:
        """Raises PathFailed: it cannot be opened; says why."""
        self.port = port
        try:
            self._open()
        except PyverbsRDMAError as error:
            raise PathFailed(
                f"RDMA device {port} cannot be opened: {_reason(error)}; /dev/infiniband/uverbs* must be there for this user",
                errno=_number(error),
            ) from error

    def _open(self) -> None:
        self._context = Context(name=self.port.device)
        self._domain = PD(self._context)
        self._channel, self._descriptor = with_descriptor(lambda: CompChannel(self._context))
        limits = self._context.query_device()
        attributes = self._context.query_port(self.port.number)
        self.most_segments = min(MOST_SEGMENTS, limits.max_sge)
        self.send_depth = min(SEND_DEPTH, limits.max_qp_wr)
        self.most_reads = min(MOST_READS, limits.max_qp_rd_atom, limits.max_qp_init_rd_atom)
        self.most_region_bytes = limits.max_mr_size
        self._most_regions = limits.max_mr
        self._lid: int = attributes.lid
        self._mtu = int(attributes.active_mtu)
        num_completions = min(COMPLETIONS, limits.max_cqe)
        self.most_requests = num_completions // 2
        self._completions = CQ(self._context, num_completions, None, self._channel, 0)
        self._completions.req_notify()

    @property
    def is_active(self) -> bool:
        """Whether the link is up now."""
        return is_active(self.port)

    def fileno(self) -> int:
        """A descriptor that is readable when `wait_is_over` is to be called."""
        return self._descriptor

    def wait_is_over(self) -> None:
        """The descriptor is readable: lets it be so again for what completes from now on.

        Raises:
            PathFailed: the device is out of order.
        """
        try:
            self._channel.get_cq_event(self._completions)
            self._completions.ack_events(1)
            self._completions.req_notify()
        except PyverbsRDMAError as error:
            raise self._out_of_order(error) from error

    def completed(self, most: int = 64) -> list[Ended]:
        """What has completed; empty where there is nothing more.

        Raises:
            PathFailed: the device is out of order.
        """
        try:
            _, found = self._completions.poll(most)
        except PyverbsRDMAError as error:
            raise self._out_of_order(error) from error
        return [Ended(each.wr_id, each.qp_num, _name(enums.ibv_wc_status(each.status), "IBV_WC_")) for each in found]

    def register(
        self, address: int, num_bytes: int, *, is_remote: bool = False, writable: bool = False
    ) -> MemoryRegion:
        """Pins memory, at most `most_region_bytes`. `is_remote`: for peers, that they read, and write where `writable`.

        Raises:
            TransferError: the kernel or the device refuses; says what to do.
        """
        if (reason := refusal(num_bytes)) is not None:
            raise TransferError(f"{self.port} cannot register {format_size(num_bytes)}: {reason}", errno=errno.ENOMEM)
        return self._register(
            num_bytes, lambda: MR(self._domain, num_bytes, _access(is_remote, writable), address=address)
        )

    def register_gpu_memory(
        self,
        address: int,
        num_bytes: int,
        dma_buf: DmaBuf | None,
        *,
        is_remote: bool = False,
        writable: bool = False,
    ) -> MemoryRegion:
        """As register, for memory of a GPU: by its dma-buf, or by its address where a module of the kernel knows that.

        Raises:
            TransferError: as register.
        """
        access = _access(is_remote, writable)
        if dma_buf is None:
            return self._register(num_bytes, lambda: MR(self._domain, num_bytes, access, address=address))
        try:
            return self._register(
                num_bytes,
                # its first byte is at the offset for the NIC: pyverbs gives no choice
                lambda: DmaBufMR(self._domain, num_bytes, access, dmabuf=dma_buf.descriptor, offset=dma_buf.offset),
                shift=dma_buf.offset - address,
            )
        except TypeError as error:
            raise TransferError(
                f"this pyverbs takes no dma-buf by its descriptor, that of rdma-core 44 does: {error}"
            ) from error

    def _register(self, num_bytes: int, make: Callable[[], Any], shift: int = 0) -> MemoryRegion:
        try:
            return MemoryRegion(make(), shift)
        except PyverbsRDMAError as error:
            raise TransferError(
                f"{self.port} cannot register {format_size(num_bytes)}: {_reason(error)}"
                f"{advice(_number(error), self._most_regions)}",
                errno=_number(error),
            ) from error

    def queue_pair(self, fabric: Fabric) -> QueuePair:
        """A new one, not connected yet.

        Raises:
            PathFailed: the device has none left.
        """
        gid = self.port.gid(fabric)
        if gid is None:
            raise PathFailed(f"{self.port} has no GID of {fabric}", errno=errno.EADDRNOTAVAIL)
        capabilities = QPCap(
            max_send_wr=self.send_depth,
            max_recv_wr=1,
            max_send_sge=self.most_segments,
            max_recv_sge=1,
            max_inline_data=INLINE_BYTES,
        )
        wanted = QPInitAttr(
            qp_type=enums.ibv_qp_type.IBV_QPT_RC,
            scq=self._completions,
            rcq=self._completions,
            cap=capabilities,
            sq_sig_all=0,
        )
        try:
            pair = QP(self._domain, wanted)
        except PyverbsRDMAError as error:
            raise PathFailed(
                f"{self.port} cannot make another queue pair: {_reason(error)}", errno=_number(error)
            ) from error
        return QueuePair(self, pair, fabric)

    def handle_of(self, queue_pair: int, packet_sequence: int, fabric: Fabric) -> PortHandle:
        """Of a queue pair of this device."""
        gid = self.port.gid(fabric)
        assert gid is not None
        return PortHandle(queue_pair, packet_sequence, self._lid, self._mtu, gid.address.packed, self.most_reads)

    def _out_of_order(self, error: PyverbsRDMAError) -> PathFailed:
        return PathFailed(f"{self.port} does not say what has completed: {_reason(error)}", errno=_number(error))

    def close(self) -> None:
        """Its queue pairs and memory regions are closed first. Idempotent."""
        for part in (self._completions, self._channel, self._domain, self._context):
            _close(part)


class QueuePair:
    """A reliable connection of two devices. One thread at a time."""

    def __init__(self, device: Device, pair: Any, fabric: Fabric) -> None:
        self._device = device
        self._pair = pair
        self._fabric = fabric
        self._packet_sequence = secrets.randbits(24)
        self.number: int = pair.qp_num

    @property
    def handle(self) -> PortHandle:
        """As the other end needs it."""
        return self._device.handle_of(self.number, self._packet_sequence, self._fabric)

    @property
    def state(self) -> str:
        """As RTS, ERR; for messages."""
        try:
            attributes, _ = self._pair.query(enums.ibv_qp_attr_mask.IBV_QP_STATE)
            return _name(enums.ibv_qp_state(attributes.qp_state), "IBV_QPS_")
        except PyverbsRDMAError:
            return "unknown"

    def connect(self, other: PortHandle) -> None:
        """Makes it ready to send and to be read and written.

        Raises:
            PathFailed: the device refuses.
        """
        ours = self.handle
        attributes = QPAttr()
        attributes.port_num = self._device.port.number
        access = enums.ibv_access_flags
        attributes.qp_access_flags = access.IBV_ACCESS_REMOTE_READ | access.IBV_ACCESS_REMOTE_WRITE
        attributes.path_mtu = min(ours.mtu, other.mtu)
        attributes.dest_qp_num = other.queue_pair
        attributes.rq_psn = other.packet_sequence
        attributes.sq_psn = self._packet_sequence
        attributes.max_dest_rd_atomic = attributes.max_rd_atomic = min(ours.reads, other.reads)
        attributes.min_rnr_timer = 12
        attributes.timeout = TIMEOUT_EXPONENT
        attributes.retry_cnt = RETRIES
        attributes.rnr_retry = RETRIES
        attributes.ah_attr = self._route(other)
        try:
            self._pair.to_init(attributes)
            self._pair.to_rtr(attributes)
            self._pair.to_rts(attributes)
        except PyverbsRDMAError as error:
            raise PathFailed(
                f"{self._device.port} cannot connect a queue pair over {self._fabric}: {_reason(error)}",
                errno=_number(error),
            ) from error

    def post(self, requests: Sequence[WorkRequest]) -> None:
        """Starts work requests, all with one call.

        Raises:
            PathFailed: the device refuses; some of them may have begun.
        """
        made = [self._made(request) for request in requests]
        for one, following in itertools.pairwise(made):
            one.next_wr = following
        try:
            self._pair.post_send(made[0])
        except PyverbsRDMAError as error:
            raise PathFailed(f"{self._device.port} takes no work: {_reason(error)}", errno=_number(error)) from error

    def close(self) -> None:
        """When it returns, the device touches no memory for it any more. Idempotent."""
        _close(self._pair)

    def _route(self, other: PortHandle) -> Any:
        port = self._device.port
        gid = port.gid(self._fabric)
        assert gid is not None
        is_global = self._fabric is not Fabric.INFINIBAND or gid.address.packed[:8] != other.gid[:8]
        route = GlobalRoute(
            dgid=GID(ipaddress.IPv6Address(other.gid).exploded), sgid_index=gid.table_index, hop_limit=HOP_LIMIT
        )
        return AHAttr(gr=route, is_global=int(is_global), dlid=other.lid, port_num=port.number)

    def _made(self, request: WorkRequest) -> Any:
        flags = enums.ibv_send_flags.IBV_SEND_SIGNALED if request.is_signalled else 0
        if request.is_inline:
            flags |= enums.ibv_send_flags.IBV_SEND_INLINE
        segments = [SGE(address, length, key) for address, length, key in request.segments]
        opcodes = enums.ibv_wr_opcode
        opcode = opcodes.IBV_WR_RDMA_READ if request.is_read else opcodes.IBV_WR_RDMA_WRITE
        made = SendWR(request.number, num_sge=len(segments), sg=segments, opcode=opcode, send_flags=flags)
        made.set_wr_rdma(request.remote_key, request.remote_address)
        return made


def _access(is_remote: bool, writable: bool) -> int:
    flags = enums.ibv_access_flags
    access: int = flags.IBV_ACCESS_LOCAL_WRITE
    if is_remote:
        access |= flags.IBV_ACCESS_REMOTE_READ | (flags.IBV_ACCESS_REMOTE_WRITE if writable else 0)
    return access


def _close(part: Any) -> None:
    """A device that was pulled out refuses to give back what it had; it touches no memory any more either."""
    try:
        part.close()
    except PyverbsRDMAError as error:
        _log.warning("an RDMA device did not give back a %s: %s", type(part).__name__, _reason(error))


def _number(error: Any) -> int:
    """The errno; pyverbs tells only some of them."""
    return abs(int(error.error_code or 0)) or errno.EIO


def _reason(error: Any) -> str:
    return f"{errno.errorcode.get(_number(error), 'error')}, {os.strerror(_number(error))}"


def _name(value: Any, prefix: str) -> str:
    return str(value.name).removeprefix(prefix)
