"""The rdma transport keeps the contract, and what only NICs can do wrong; where there is a device. scripts/rdma-guest has one."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mooncake_core.errors import DeadlineExceeded, PathFailed, PluginUnavailable, StaleSegment
from mooncake_core.testing.cluster import wait_for
from mooncake_core.testing.transport_contract import Ends, TransportContract
from mooncake_core.transfer.contract import Kind, Range
from mooncake_core.transfer.engine import TransferEngine, TransferRequest
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_rdma.paths import RdmaPath
from mooncake_rdma.ports import Fabric, read_ports, usable_ports
from tests.acceptance.footprint import footprint
from tests.transfer.random_transfers import COUNT, LARGEST_BYTES, MOST_BYTES, RandomTransfers

try:
    usable_ports(read_ports())
    from mooncake_rdma.transport import RdmaTransport
    from mooncake_rdma.verbs import Device
except PluginUnavailable as error:
    pytest.skip(f"{error}; scripts/rdma-guest runs a command where there is one", allow_module_level=True)

REGION_BYTES = 32 << 20
CYCLES = 20
IDLE_S = 5.0
TARGET = f"""
import sys, time
import msgspec
from mooncake_core.transfer.engine import TransferEngine, TransferRequest
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.transfer.shared_memory import SharedMemory
engine = TransferEngine(owner='target', host_id='there', incarnation=2, transports=['rdma'])
memory = SharedMemory('target', {REGION_BYTES})
segment = engine.export(engine.register_memory(memory.view), writable=True)
sys.stdout.buffer.write(msgspec.json.encode(segment) + b'\\n')
sys.stdout.flush()
time.sleep(600)
"""


class TestRdma(TransportContract):
    transport = RdmaTransport


class Target:
    """A process with exported memory."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", TARGET], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.segment = msgspec.json.decode(self.process.stdout.readline(), type=SegmentDescriptor)
        self.path = self.segment.paths["rdma"]

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """Of all tests that leave it as it is: a process takes seconds to start where all is emulated."""
    with Target() as target:
        yield target


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends(RdmaTransport)
    yield ends
    ends.close()


@pytest.mark.parametrize(
    ("count", "largest_bytes"),
    [(100, 1 << 20), pytest.param(COUNT, LARGEST_BYTES, marks=[pytest.mark.acceptance, pytest.mark.timeout(900)])],
)
def test_random_transfers_move_every_byte(target: Target, count: int, largest_bytes: int) -> None:
    engine = TransferEngine(owner="here", host_id="here", incarnation=1, transports=["rdma"], timeout_s=120)
    started = time.monotonic()
    transfers = RandomTransfers(engine, target.segment, largest_bytes=largest_bytes, most_bytes=MOST_BYTES)
    transfers.run(count)
    assert transfers.done == count
    print(f"{transfers.done} transfers, {transfers.moved_bytes} bytes, {time.monotonic() - started:.1f} s")
    transfers.close()
    engine.close()


def test_a_killed_peer_is_a_failed_path_that_names_peer_ports_and_errno(ends: Ends) -> None:
    sink = bytearray(REGION_BYTES)
    with Target() as target:
        assert ends.transfer(Kind.READ, target.path, [memoryview(bytearray(1))], 0) is None
        operation = ends.operation(Kind.READ, target.path, [memoryview(sink)], 0)
        ends.initiator.post([operation])
        target.process.kill()
        error = ends.collect(1)[operation.operation_id]
        assert isinstance(error, PathFailed)
        assert error.detail["errno"] > 0
        assert error.detail["peer"].startswith("127.0.0.1:")
        assert "over rdma (rxe0/1 to rxe0/1)" in str(error)
        before = bytes(sink)
        assert isinstance(ends.transfer(Kind.READ, target.path, [memoryview(bytearray(1))], 0), PathFailed)
    assert sink == before


def test_a_peer_that_stands_still_is_read_and_written_all_the_same(target: Target, ends: Ends) -> None:
    assert ends.transfer(Kind.WRITE, target.path, [memoryview(b"hello")], 7) is None
    target.process.send_signal(signal.SIGSTOP)
    here = bytearray(5)
    assert ends.transfer(Kind.READ, target.path, [memoryview(here)], 7) is None
    target.process.send_signal(signal.SIGCONT)
    assert here == b"hello"


def test_after_a_missed_deadline_the_pieces_are_left_alone_and_the_rail_goes_on(target: Target, ends: Ends) -> None:
    assert ends.transfer(Kind.READ, target.path, [memoryview(bytearray(1))], 0) is None
    sink = bytearray(b"x" * REGION_BYTES)
    operation = ends.operation(Kind.READ, target.path, [memoryview(sink)], 0, timeout_s=0.05)
    assert isinstance(ends.complete([operation])[operation.operation_id], DeadlineExceeded)
    sink[:] = b"y" * REGION_BYTES
    assert ends.transfer(Kind.READ, target.path, [memoryview(bytearray(1))], 0) is None
    assert sink.count(b"y") == REGION_BYTES


def test_a_key_that_is_not_known_there_is_stale_and_others_go_on(ends: Ends) -> None:
    good = ends.export(writable=True)
    known = msgspec.msgpack.decode(good, type=RdmaPath)
    wrong = msgspec.structs.replace(known, export=99, keys=[[key ^ 0x5A for key in keys] for keys in known.keys])
    bad = msgspec.msgpack.encode(wrong)
    operations = [
        ends.operation(Kind.READ, bad if number % 5 == 2 else good, [memoryview(bytearray(4096))], 4096 * number)
        for number in range(20)
    ]
    errors = ends.complete(operations)
    for operation in operations:
        error = errors[operation.operation_id]
        assert error is None if operation.path == good else isinstance(error, StaleSegment)


def test_a_process_started_anew_is_stale(ends: Ends) -> None:
    known = msgspec.msgpack.decode(ends.export(writable=True), type=RdmaPath)
    other = msgspec.msgpack.encode(msgspec.structs.replace(known, incarnation=77))
    assert isinstance(ends.transfer(Kind.WRITE, other, [memoryview(b"x")], 0), StaleSegment)


def test_another_secret_is_refused(ends: Ends) -> None:
    target = ends.make("target", 5, b"theirs")
    path = target.export(target.register(memoryview(bytearray(10))), writable=True)
    assert path is not None
    error = ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0)
    assert isinstance(error, PathFailed)
    assert "another cluster key" in str(error)
    target.close()


def test_ranges_of_an_export_have_keys_of_their_own(ends: Ends) -> None:
    path = ends.export(writable=True, ranges=[Range(100 * number, 50) for number in range(40)])
    for number in range(40):
        assert ends.transfer(Kind.WRITE, path, [memoryview(b"z" * 50)], 100 * number) is None
        assert ends.memory[100 * number : 100 * number + 50] == b"z" * 50


def test_in_order_the_last_range_lands_last(ends: Ends) -> None:
    path = ends.export(writable=True)
    ends.memory[:] = bytes(len(ends.memory))
    source = memoryview(b"a" * 900_000 + b"b")
    operation = ends.operation(Kind.WRITE, path, [source], 0)
    ranges = (Range(0, 900_000), Range(1_000_000, 1))
    ends.initiator.post([msgspec.structs.replace(operation, ranges=ranges, in_order=True)])
    deadline = time.monotonic() + 20
    while ends.memory[1_000_000] != ord("b"):
        assert time.monotonic() < deadline
    assert ends.memory[:900_000] == b"a" * 900_000
    assert ends.collect(1) == {operation.operation_id: None}


def test_ports_meet_over_ipv6_too() -> None:
    class OverIPv6(RdmaTransport):
        def open_devices(self) -> list[Device]:
            (port, *_) = usable_ports(read_ports(), ["rxe0"])
            gid = port.gid(Fabric.ROCE_V2_IPV6)
            assert gid is not None
            return [Device(dataclasses.replace(port, gids=(gid,)))]

    ends = Ends(OverIPv6)
    assert ends.transfer(Kind.WRITE, ends.export(writable=True), [memoryview(b"hello" * 1000)], 0) is None
    assert ends.memory[:5000] == b"hello" * 1000
    ends.close()


def _resources() -> list[str]:
    """What the kernel has of each device, for all processes: queue pairs, memory regions and others."""
    shown = subprocess.run(["rdma", "resource", "show"], stdout=subprocess.PIPE, text=True, check=True)
    return shown.stdout.splitlines()


def test_cycles_leave_nothing_on_the_device(target: Target) -> None:
    def cycle(number: int) -> None:
        engine = TransferEngine(owner="here", host_id="here", incarnation=10 + number, transports=["rdma"])
        memory = SharedMemory("here", 1 << 20)
        engine.export(engine.register_memory(memory.view), writable=True)
        pieces = [memory.view, memoryview(bytearray(1 << 20))]
        moved = engine.move(Kind.READ, target.segment, [([piece], 0) for piece in pieces])
        assert [transfer.error for transfer in moved] == [None, None]
        engine.close()  # all is still registered and exported
        memory.close()

    before = _resources()
    cycle(0)
    wait_for(lambda: _resources() == before)
    held = footprint()
    for number in range(1, CYCLES):
        cycle(number)
    wait_for(lambda: _resources() == before)
    print(f"after {CYCLES} cycles: {before}; of this process {held}, then {footprint()}")
    assert all(footprint()[name] <= held[name] for name in ("descriptors", "threads", "kernel_threads"))


def test_an_idle_transport_takes_next_to_no_time_of_a_processor(target: Target, ends: Ends) -> None:
    assert ends.transfer(Kind.READ, target.path, [memoryview(bytearray(1))], 0) is None
    clocks = [
        time.pthread_getcpuclockid(thread.ident)
        for thread in threading.enumerate()
        if thread.name == "rdma-completions" and thread.ident is not None
    ]
    before = [time.clock_gettime(clock) for clock in clocks]
    time.sleep(IDLE_S)
    shares = [(time.clock_gettime(clock) - earlier) / IDLE_S for clock, earlier in zip(clocks, before, strict=True)]
    print(f"idle threads for completions take {', '.join(f'{share:.2%}' for share in shares)} of a core")
    assert shares
    assert max(shares) < 0.02


TWO_DEVICES = len(usable_ports(read_ports())) > 1


def _sent_packets(device: str) -> int:
    return int(Path(f"/sys/class/infiniband/{device}/ports/1/hw_counters/sent_pkts").read_text())


def _set_link(name: str, *, up: bool) -> None:
    """At once: a process for it would take longer than the transfers."""
    get_flags, set_flags, is_up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        asked = struct.pack("16sh22x", name.encode(), 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(sock, get_flags, asked), 16)
        fcntl.ioctl(sock, set_flags, struct.pack("16sh22x", name.encode(), flags | is_up if up else flags & ~is_up))


@pytest.mark.acceptance
@pytest.mark.skipif(not TWO_DEVICES, reason="needs two devices: RDMA_GUEST_DEVICES=2 scripts/rdma-guest")
def test_a_batch_goes_over_two_devices_and_completes_on_one_when_the_other_goes_down(target: Target) -> None:
    engine = TransferEngine(owner="here", host_id="here", incarnation=1, transports=["rdma"], timeout_s=60)
    memory = SharedMemory("here", REGION_BYTES)
    engine.register_memory(memory.view)
    memory.view[:] = os.urandom(REGION_BYTES)
    part_bytes = 1 << 20
    requests = [
        TransferRequest(
            Kind.WRITE, (memory.view[start : start + part_bytes],), target.segment, (Range(start, part_bytes),)
        )
        for start in range(0, REGION_BYTES, part_bytes)
    ]
    before = _sent_packets("rxe1")
    requests *= 6  # so many that the link goes down in the middle of them
    batch = engine.allocate_batch(len(requests))
    engine.submit(batch, requests)
    wait_for(lambda: _sent_packets("rxe1") > before + 1000)
    _set_link("veth1", up=False)
    went_down = time.monotonic()
    carried = {device: _sent_packets(device) for device in ("rxe0", "rxe1")}
    assert engine.wait(batch, 60)
    took_s = time.monotonic() - went_down
    after = {device: _sent_packets(device) - packets for device, packets in carried.items()}
    _set_link("veth1", up=True)
    errors = {error for _, error in engine.status(batch)}
    by_port = Counter[str]()
    for transfer in batch.transfers:
        by_port.update({part.local: part.num_bytes for part in transfer.carried()})
    print(
        f"the batch ended {took_s:.2f} s after the link went down, with packets sent {after}; in all {dict(by_port)} bytes"
    )
    assert errors == {None}
    assert sum(by_port.values()) == part_bytes * len(requests)
    assert min(by_port["rxe0/1"], by_port["rxe1/1"]) > part_bytes
    aside = {lane.local: lane.num_set_aside for lane in engine.lanes()}
    assert (aside["rxe0/1"], aside["rxe1/1"]) == (0, 1)
    assert all(packets > 1000 for packets in carried.values()), carried
    assert after["rxe0"] > 1000, "the link went down when all had been moved"
    sink = memoryview(bytearray(REGION_BYTES))
    assert [moved.error for moved in engine.move(Kind.READ, target.segment, [([sink], 0)])] == [None]
    assert sink == memory.view
    engine.close()
    memory.close()
