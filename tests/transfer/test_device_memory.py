"""Memory of a GPU, by a stand-in whose memory ends the process that looks at it: over every path, at either end."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import pytest

from mooncake_core.errors import DeadlineExceeded, NotRegistered, OutOfRange, PathFailed, StaleSegment, TransferError
from mooncake_core.p2p import P2PStore
from mooncake_core.testing.device_memory import StandInDevice, StandInDriver
from mooncake_core.transfer import Endpoint, Kind, Request, Span, device_memory
from mooncake_core.transfer.addresses import address_of, is_readable
from mooncake_core.transfer.contract import Capabilities, Completion, Operation, Range
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.pinned import MOST_PINNED, PINNED_BYTES, PinnedBuffers
from mooncake_core.transfer.staging import MOST_PER_PEER
from mooncake_tcp import TcpTransport, serving
from tests.transfer.stand_in_gpu import found_gpu

pytestmark = pytest.mark.timeout(60)
MIB = 1 << 20
HALF = 48 * MIB


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInDevice]:
    with found_gpu(monkeypatch) as gpu:
        yield gpu


class Place:
    """Memory at one end, of the GPU or of the host."""

    def __init__(self, gpu: StandInDevice, num_bytes: int, *, on_gpu: bool, offset: int = 0) -> None:
        self.content = gpu.content[offset : offset + num_bytes] if on_gpu else memoryview(bytearray(num_bytes))
        self.address = gpu.address + offset if on_gpu else address_of(self.content)

    def span(self, start: int, num_bytes: int) -> Span:
        return Span(self.address + start, num_bytes)


class Ends:
    """The first half of the GPU's memory is the target's, the second the initiator's, where they are on the GPU."""

    def __init__(self, gpu: StandInDevice, where: str, transports: Sequence[str] = ("tcp",)) -> None:
        self.gpu = gpu
        self.there = Place(gpu, HALF, on_gpu=where != "initiator")
        self.here = Place(gpu, HALF, on_gpu=where != "target", offset=HALF)
        self.initiator = Endpoint(transports=transports)
        self.target = Endpoint(transports=transports)
        self.target.register_memory(Span(self.there.address, HALF))
        self.peer = self.initiator.open(self.target.name)

    def move(self, kind: Kind, start: int, there: int, num_bytes: int) -> str:
        """By raw addresses; the path it took."""
        span = self.here.span(start, num_bytes)
        return self.initiator.transfer(Request(kind, self.peer, span, self.there.address + there)).path

    def close(self) -> None:
        self.initiator.close()
        self.target.close()


@pytest.fixture(params=["initiator", "target", "both"])
def ends(request: pytest.FixtureRequest, gpu: StandInDevice) -> Iterator[Ends]:
    ends = Ends(gpu, request.param)
    yield ends
    ends.close()


@pytest.fixture
def at_both(gpu: StandInDevice) -> Iterator[Ends]:
    ends = Ends(gpu, "both")
    yield ends
    ends.close()


def test_the_stand_in_is_no_memory_for_the_cpu(gpu: StandInDevice) -> None:
    assert not is_readable(gpu.address, 1)
    view = device_memory.device_view(gpu.address + 5, 100)
    assert view is not None
    assert device_memory.device_of(memoryview(view).cast("B")[10:20]) is gpu
    assert device_memory.content_of(view[10:20]) == gpu.content[15:25]
    assert device_memory.device_view(gpu.address + gpu.num_bytes - 1, 2) is None


@pytest.mark.parametrize("num_bytes", [1, 4095, MIB, PINNED_BYTES + 1, 40 * MIB])
def test_bytes_go_there_and_back(ends: Ends, num_bytes: int) -> None:
    there, here = ends.there.content, ends.here.content
    here[3 : 3 + num_bytes] = sent = os.urandom(num_bytes)
    before = bytes(there[:7]), bytes(there[7 + num_bytes : 8 + num_bytes])
    assert ends.move(Kind.WRITE, 3, 7, num_bytes) == "tcp"
    assert there[7 : 7 + num_bytes] == sent
    assert (there[:7], there[7 + num_bytes : 8 + num_bytes]) == before
    there[7 : 7 + num_bytes] = sent = sent[::-1]
    ends.move(Kind.READ, 3, 7, num_bytes)
    assert here[3 : 3 + num_bytes] == sent


def test_random_sizes_at_random_places(ends: Ends) -> None:
    draw, contents = random.Random(7), np.random.default_rng(7)
    for _ in range(40):
        num_bytes = int(40 * MIB ** draw.random())
        start, there = (draw.randrange(HALF - num_bytes) for _ in range(2))
        kind = draw.choice([Kind.READ, Kind.WRITE])
        near = ends.here.content[start : start + num_bytes]
        far = ends.there.content[there : there + num_bytes]
        (near if kind is Kind.WRITE else far)[:] = contents.bytes(num_bytes)
        ends.move(kind, start, there, num_bytes)
        assert near == far


def test_many_small_pieces_at_once(ends: Ends) -> None:
    draw = random.Random(1)
    starts = [5000 * number for number in range(3000)]
    lengths = [draw.randint(1, 5000) for _ in starts]
    here = [ends.here.address + start for start in draw.sample(starts, len(starts))]
    there = [ends.there.address + start for start in starts]
    for kind in (Kind.WRITE, Kind.READ):
        pieces = ends.initiator.views(here, lengths)
        ends.here.content[:] = os.urandom(MIB) * 48
        ends.initiator.move(kind, ends.peer, pieces, there)
        for near, far, length in zip(here, there, lengths, strict=True):
            start, target = near - ends.here.address, far - ends.there.address
            assert ends.here.content[start : start + length] == ends.there.content[target : target + length]


def test_scatter_and_gather_of_both_kinds(ends: Ends) -> None:
    host = bytearray(os.urandom(3 * MIB))
    pieces = [ends.here.span(10, 5 * MIB), host, ends.here.span(20 * MIB, 70_000), host[:1]]
    content = ends.here.content
    sent = b"".join([content[10 : 10 + 5 * MIB], host, content[20 * MIB : 20 * MIB + 70_000], host[:1]])
    spans = [ends.there.span(30 * MIB, 6 * MIB), ends.there.span(1, len(sent) - 6 * MIB - 9), ends.there.span(0, 1)]
    spans.append(ends.there.span(29 * MIB, 8))
    ends.initiator.write(ends.peer, pieces, spans)
    there = ends.there.content

    def landed() -> bytes:
        base = ends.there.address
        return b"".join(there[address - base : address - base + length] for address, length in spans)

    assert landed() == sent
    content[10 : 10 + 5 * MIB] = bytes(5 * MIB)
    host[:] = bytes(len(host))
    sinks = [pieces[0], host, pieces[2], bytearray(1)]
    ends.initiator.read(ends.peer, sinks, spans)
    assert b"".join([content[10 : 10 + 5 * MIB], host, content[20 * MIB : 20 * MIB + 70_000], sinks[3]]) == sent


def test_a_batch_and_coroutines(ends: Ends) -> None:
    requests = [
        Request(Kind.WRITE, ends.peer, ends.here.span(MIB * number, MIB), ends.there.address + MIB * number)
        for number in range(20)
    ]
    batch = ends.initiator.allocate_batch(20)
    ends.initiator.submit(batch, requests)
    assert ends.initiator.wait(batch, 30)
    assert [error for _, error in ends.initiator.status(batch)] == [None] * 20
    assert ends.there.content[: 20 * MIB] == ends.here.content[: 20 * MIB]
    reads = [
        Request(Kind.READ, ends.peer, ends.here.span(MIB * number, MIB), ends.there.address + MIB * (19 - number))
        for number in range(10)
    ]

    async def read() -> None:
        await asyncio.gather(*map(ends.initiator.transfer_async, reads))

    asyncio.run(read())
    for number in range(10):
        there = ends.there.content[MIB * (19 - number) : MIB * (20 - number)]
        assert ends.here.content[MIB * number : MIB * (number + 1)] == there


def test_what_is_asked_to_land_in_order_does(gpu: StandInDevice) -> None:
    here, there = (
        TransferEngine(owner=name, host_id=name, incarnation=number, transports=["tcp"])
        for number, name in enumerate(("here", "there"), 1)
    )
    memory = bytearray(12 * MIB)
    segment = there.export(there.register_memory(memory), writable=True)
    piece = device_memory.device_view(gpu.address, 10 * MIB)
    assert piece is not None
    ranges = [Range(6 * MIB, 5 * MIB), Range(0, 5 * MIB)]
    (moved,) = here.move(Kind.WRITE, segment, [([piece], ranges)], in_order=True)
    assert moved.error is None
    assert memory[6 * MIB : 11 * MIB] + memory[: 5 * MIB] == gpu.content[: 10 * MIB]
    here.close()
    there.close()


def test_within_a_process_the_driver_copies(gpu: StandInDevice) -> None:
    with Endpoint() as here:
        address = here.register_memory(Span(gpu.address, MIB))
        peer = here.open(here.name)
        assert here.write(peer, sent := os.urandom(1000), address + 5).path == "local"
        assert gpu.content[5:1005] == sent
        here.write(peer, [Span(gpu.address + 5, 500), bytes(3)], address + 5000)
        assert gpu.content[5000:5503] == sent[:500] + bytes(3)
        sink = bytearray(500)
        here.read(peer, sink, address + 5000)
        assert sink[:500] == sent[:500]


def test_shared_memory_never_sees_it_and_tcp_carries_it(gpu: StandInDevice, caplog: pytest.LogCaptureFixture) -> None:
    ends = Ends(gpu, "target", ("shm", "tcp"))
    assert ends.move(Kind.WRITE, 0, 0, 5000) == "tcp"
    memory = ends.target.allocate_memory(MIB)
    assert ends.initiator.write(ends.peer, Span(gpu.address, MIB), address_of(memory.view)).path == "shm"
    assert memory.view == gpu.content[:MIB]
    ends.close()
    with Endpoint(transports=["shm"]) as alone:
        alone.register_memory(Span(gpu.address, 100))
    assert "no peer reaches memory of cuda:0: shm cannot carry it" in caplog.text


class Unaware(TcpTransport):
    """Of somebody who knows nothing of devices."""

    name: ClassVar[str] = "unaware"
    capabilities: ClassVar[Capabilities] = Capabilities()

    def register(self, memory: memoryview, descriptor: int | None = None) -> int:
        assert device_memory.device_of(memory) is None
        return super().register(memory, descriptor)

    def post(self, operations: Sequence[Operation]) -> None:
        assert all(device_memory.device_among(operation.pieces) is None for operation in operations)
        super().post(operations)

    def move(self, operations: Sequence[Operation]) -> list[Completion | None]:
        assert all(device_memory.device_among(operation.pieces) is None for operation in operations)
        return [None] * len(operations)


def test_transports_that_know_nothing_of_devices_get_memory_of_the_host(gpu: StandInDevice) -> None:
    with Endpoint(transports=[Unaware]) as here, Endpoint(transports=[Unaware]) as there:
        here.register_memory(Span(gpu.address, 50 * MIB))
        memory = bytearray(20 * MIB)
        address = there.register_memory(memory)
        peer = here.open(there.name)
        here.write(peer, Span(gpu.address, 20 * MIB), address)
        assert memory == gpu.content[: 20 * MIB]
        here.read(peer, Span(gpu.address + 25 * MIB, 20 * MIB), address)
        assert memory == gpu.content[25 * MIB : 45 * MIB]


def test_raw_addresses_beyond_what_is_registered(at_both: Ends) -> None:
    here, there = at_both.initiator, at_both.there
    address = here.register_memory(Span(at_both.here.address, MIB))
    with pytest.raises(OutOfRange, match="go beyond what was registered"):
        here.write(at_both.peer, Span(address + MIB - 5, 6), there.address)
    with pytest.raises(NotRegistered, match="no memory that holds 10 bytes"):
        here.write(at_both.peer, Span(address, 10), there.address + HALF - 9)
    end = at_both.gpu.address + at_both.gpu.num_bytes
    with pytest.raises(OutOfRange, match="nor are they memory of one of the GPUs"):
        here.write(at_both.peer, Span(end - 5, 6), there.address)
    here.write(at_both.peer, Span(address + MIB - 5, 5), there.address + HALF - 5)
    assert there.content[HALF - 5 :] == at_both.here.content[MIB - 5 : MIB]


def test_read_only_memory_of_a_gpu_is_not_written(gpu: StandInDevice) -> None:
    with Endpoint(transports=["tcp"]) as here, Endpoint(transports=["tcp"]) as there:
        address = there.register_memory(Span(gpu.address, 100), writable=False)
        peer = here.open(there.name)
        with pytest.raises(OutOfRange):
            here.write(peer, b"x", address)
        sink = bytearray(100)
        here.read(peer, sink, address)
        assert sink == gpu.content[:100]


def test_what_waits_for_a_thread_fails_at_its_deadline(at_both: Ends) -> None:
    here, gpu = at_both.initiator, at_both.gpu
    batches = []
    gpu.moving.clear()
    for number in range(MOST_PER_PEER + 3):
        batch = here.allocate_batch(1)
        span = at_both.here.span(MIB * number, MIB)
        request = Request(Kind.WRITE, at_both.peer, span, at_both.there.address + MIB * number)
        here.submit(batch, [request], timeout_s=0.3 if number >= MOST_PER_PEER else 20)
        batches.append(batch)
    started_s = time.monotonic()
    for batch in batches[MOST_PER_PEER:]:
        assert here.wait(batch, 10)
        assert isinstance(here.status(batch)[0][1], DeadlineExceeded)
    assert time.monotonic() - started_s < 5
    gpu.moving.set()
    assert all(here.wait(batch, 10) for batch in batches)
    assert [here.status(batch)[0][1] for batch in batches[:MOST_PER_PEER]] == [None] * MOST_PER_PEER


def test_a_peer_that_stands_still_keeps_nobody_from_others(gpu: StandInDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    receive = serving.receive_to_device
    monkeypatch.setattr(serving, "receive_to_device", lambda *given: goes_on.wait(20) and receive(*given))
    others = Ends(gpu, "initiator")
    with Endpoint(transports=["tcp"]) as still:
        address = still.register_memory(Span(gpu.address, HALF))
        peer = others.initiator.open(still.name)
        count = 3 * MOST_PER_PEER
        batch = others.initiator.allocate_batch(count)
        spans = [others.here.span(number, 1) for number in range(count)]
        others.initiator.submit(
            batch, [Request(Kind.WRITE, peer, span, address + at) for at, span in enumerate(spans)], timeout_s=20
        )
        assert others.move(Kind.WRITE, 0, 0, MIB) == "tcp"
        assert not others.initiator.wait(batch, 0)
        goes_on.set()
        assert others.initiator.wait(batch, 20)
        assert {error for _, error in others.initiator.status(batch)} == {None}
    others.close()


def test_where_no_thread_can_begin_the_transfer_fails(gpu: StandInDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Ends(gpu, "initiator")
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "staging":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(threading.Thread, "start", refuse)
        with pytest.raises(PathFailed, match="memory of cuda:0 cannot be copied: can't start new thread"):
            ends.move(Kind.WRITE, 0, 0, 100)
    ends.move(Kind.WRITE, 0, 0, 100)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(threading.Thread, "start", refuse)
        ends.move(Kind.WRITE, 0, 0, 20 * MIB)  # the one that there is does it all
    assert ends.there.content[: 20 * MIB] == ends.here.content[: 20 * MIB]
    ends.close()


def test_a_copy_that_takes_too_long_is_late(gpu: StandInDevice) -> None:
    ends = Ends(gpu, "initiator")
    gpu.moving.clear()
    later = threading.Timer(0.4, gpu.moving.set)
    later.start()
    with pytest.raises(DeadlineExceeded):
        ends.initiator.write(ends.peer, ends.here.span(0, 100), ends.there.address, timeout_s=0.2)
    later.join()
    assert ends.move(Kind.WRITE, 0, 0, 100) == "tcp"
    ends.close()


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("num_copies", [0, 1])
def test_a_driver_that_fails_is_said_and_what_follows_is_fine(ends: Ends, kind: Kind, num_copies: int) -> None:
    ends.gpu.copies_until_failure = num_copies
    with pytest.raises(TransferError):
        ends.move(kind, 0, 0, 9 * MIB)
    ends.gpu.copies_until_failure = None
    ends.move(kind, 0, 0, 9 * MIB)
    assert ends.here.content[: 9 * MIB] == ends.there.content[: 9 * MIB]


def test_the_drivers_words_come_through_at_the_initiator(gpu: StandInDevice) -> None:
    ends = Ends(gpu, "initiator")
    gpu.copies_until_failure = 0
    with pytest.raises(TransferError, match="the driver refuses to copy"):
        ends.move(Kind.WRITE, 0, 0, 100)
    ends.close()


def test_the_target_says_in_its_log_why_it_failed(gpu: StandInDevice, caplog: pytest.LogCaptureFixture) -> None:
    ends = Ends(gpu, "target")
    gpu.copies_until_failure = 0
    with pytest.raises(TransferError, match="failed to serve"):
        ends.move(Kind.READ, 0, 0, 100)
    assert "memory of cuda:0 could not be read for a peer: cuda:0: the driver refuses to copy" in caplog.text
    ends.close()


@pytest.mark.parametrize("closes", ["initiator", "target"])
def test_closing_while_bytes_move_fails_what_is_left(at_both: Ends, closes: str) -> None:
    here = at_both.initiator
    batch = here.allocate_batch(30)
    requests = [
        Request(Kind.WRITE, at_both.peer, at_both.here.span(MIB * number, 9 * MIB), at_both.there.address)
        for number in range(30)
    ]
    here.submit(batch, requests, timeout_s=20)
    time.sleep(0.01)
    getattr(at_both, closes).close()
    assert here.wait(batch, 10)
    errors = [error for _, error in here.status(batch) if error is not None]
    assert all(isinstance(error, PathFailed | StaleSegment) for error in errors)
    assert errors


def test_a_gpu_out_of_order_keeps_nobody_from_closing(gpu: StandInDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Ends(gpu, "initiator")
    ends.move(Kind.WRITE, 0, 0, 100)
    unpin = gpu.unpin

    def refuse(address: int) -> None:
        unpin(address)
        raise TransferError("out of order")

    monkeypatch.setattr(gpu, "unpin", refuse)
    ends.close()


def test_memory_that_cannot_be_pinned_fails_the_transfer(
    gpu: StandInDevice, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ends = Ends(gpu, "both")

    def refuse(address: int, num_bytes: int) -> None:
        raise TransferError("nothing can be pinned")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(gpu, "pin", refuse)
        with pytest.raises(TransferError, match="nothing can be pinned"):
            ends.move(Kind.WRITE, 0, 0, 100)
        sink = bytearray(100)
        with pytest.raises(TransferError, match="failed to serve"):
            ends.initiator.write(ends.peer, sink, ends.there.address)
        assert "memory of cuda:0 could not be moved for a peer: nothing can be pinned" in caplog.text
    ends.move(Kind.WRITE, 0, 0, 100)
    assert ends.there.content[:100] == ends.here.content[:100]
    ends.close()


def test_unregistering_ends_what_peers_may_touch(at_both: Ends) -> None:
    errors: list[BaseException] = []
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            try:
                at_both.move(Kind.WRITE, 0, 0, 20 * MIB)
            except TransferError as error:
                errors.append(error)
                return

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(0.1)
    at_both.target.unregister_memory(at_both.there.address)
    after = bytes(at_both.there.content)
    at_both.here.content[: 20 * MIB] = bytes(20 * MIB)
    writer.join(20)
    stop.set()
    assert isinstance(errors[0], NotRegistered | StaleSegment)
    assert at_both.there.content == after


def test_a_peer_of_another_process(gpu: StandInDevice) -> None:
    code = """
import sys
from mooncake_core.testing.device_memory import StandInDevice, StandInDriver
from mooncake_core.transfer import Endpoint, Span, device_memory
gpu = StandInDevice(16 << 20)
driver = StandInDriver(gpu)
device_memory.find_driver = lambda: driver
with Endpoint() as there:
    there.register_memory(Span(gpu.address, gpu.num_bytes))
    print(there.name, flush=True)
    sys.stdin.readline()
    print(gpu.content[5 : 5 + (9 << 20)] == bytes(range(256)) * (9 << 12), flush=True)
    sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        gpu.content[: 9 * MIB] = bytes(range(256)) * (9 << 12)
        with Endpoint() as here:
            peer = here.open(child.stdout.readline().strip())
            assert peer.first_address is not None
            assert here.write(peer, Span(gpu.address, 9 * MIB), peer.first_address + 5).path == "tcp"
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "True\n"
            here.read(peer, Span(gpu.address + 20 * MIB, 9 * MIB), peer.first_address + 5)
        assert gpu.content[20 * MIB : 29 * MIB] == gpu.content[: 9 * MIB]
        child.stdin.write("\n")
        child.stdin.close()
    assert child.returncode == 0


def test_pinned_memory_is_bounded_and_given_back(gpu: StandInDevice) -> None:
    buffers = PinnedBuffers()
    lent = [buffers.lent(gpu) for _ in range(MOST_PINNED + 2)]
    views = [one.__enter__() for one in lent]
    assert list(gpu.pinned.values()) == [PINNED_BYTES] * MOST_PINNED
    assert address_of(views[-1]) not in gpu.pinned
    for one in lent[1:]:
        one.__exit__(None, None, None)
    buffers.close()
    assert len(gpu.pinned) == 1
    lent[0].__exit__(None, None, None)
    assert gpu.pinned == {}


def test_what_cannot_be_registered_at_all_is_unpinned(gpu: StandInDevice) -> None:
    def register(view: memoryview) -> None:
        raise RuntimeError("nonsense")

    buffers = PinnedBuffers(register)
    with pytest.raises(RuntimeError, match="nonsense"), buffers.lent(gpu):
        pass
    assert gpu.pinned == {}


class Closable(Unaware):
    """Registers nothing once it is closed: a device that was closed ends the process that asks it to."""

    is_closed = threading.Event()
    registered_late = threading.Event()

    def register(self, memory: memoryview, descriptor: int | None = None) -> int:
        if self.is_closed.is_set():
            self.registered_late.set()
        return super().register(memory, descriptor)

    def close(self) -> None:
        super().close()
        self.is_closed.set()


def test_buffers_that_are_made_while_the_engine_closes_are_not_registered_with_closed_transports(
    gpu: StandInDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin, begun = gpu.pin, threading.Event()

    def slowly(address: int, num_bytes: int) -> None:
        begun.set()
        Closable.is_closed.wait(0.5)
        pin(address, num_bytes)

    monkeypatch.setattr(gpu, "pin", slowly)
    with Endpoint(transports=["tcp"]) as there, Endpoint(transports=[Closable, "tcp"]) as here:
        peer = here.open(there.name)
        address = there.register_memory(bytearray(100))
        batch = here.allocate_batch(1)
        here.submit(batch, [Request(Kind.WRITE, peer, Span(gpu.address, 100), address)])
        assert begun.wait(10)
        here.close()
        assert not Closable.registered_late.is_set()
        assert here.wait(batch, 10)


def test_a_process_without_memory_of_gpus_never_asks_the_driver(gpu: StandInDevice) -> None:
    with Endpoint(transports=["tcp"]) as here, Endpoint(transports=["tcp"]) as there:
        memory = bytearray(20 * MIB)
        address = there.register_memory(memory)
        peer = here.open(there.name)
        here.write(peer, sent := os.urandom(20 * MIB), address)
        here.write(peer, Span(address, 100), address + 100)
        assert memory[200:] == sent[200:]
    driver = device_memory.find_driver()
    assert isinstance(driver, StandInDriver)
    assert driver.num_asked == 0
    assert not device_memory.has_device_views()
    assert "staging" not in {thread.name for thread in threading.enumerate()}


class Tensor:
    """What is asked of one."""

    def __init__(self, gpu: StandInDevice, num_bytes: int, device: str = "cuda:0") -> None:
        self._gpu = gpu
        self._num_bytes = num_bytes
        self.device = type("device", (), {"type": device.partition(":")[0], "__str__": lambda _: device})()

    def data_ptr(self) -> int:
        return self._gpu.address

    def numel(self) -> int:
        return self._num_bytes // 2

    def element_size(self) -> int:
        return 2

    def is_contiguous(self) -> bool:
        return True


def test_tensors_on_a_gpu(gpu: StandInDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    with Endpoint(transports=["tcp"]) as here, Endpoint(transports=["tcp"]) as there:
        address = there.register_memory(Tensor(gpu, 1000))
        assert address == gpu.address
        peer = here.open(there.name)
        here.write(peer, sent := os.urandom(1000), address)
        assert gpu.content[:1000] == sent
        sink = bytearray(1000)
        there_peer = there.open(here.name)
        there.write(there_peer, Tensor(gpu, 1000), here.register_memory(sink))
        assert sink == sent
        with pytest.raises(OutOfRange, match=r"lies on xpu:0, which is none of the GPUs"):
            gpu.holds = lambda _: False  # type: ignore[method-assign]
            here.write(peer, Tensor(gpu, 1000, "xpu:0"), address)


def test_without_a_driver_it_is_refused_and_said_why(gpu: StandInDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "find_driver", lambda: None)
    with Endpoint(transports=["tcp"]) as here:
        with pytest.raises(OutOfRange, match="the CPU cannot read 100 bytes .*NVIDIA's driver, which is not here"):
            here.register_memory(Span(gpu.address, 100))
        with pytest.raises(OutOfRange, match=r"NVIDIA's driver, which is not here.*tensor\.cpu\(\)"):
            here.register_memory(Tensor(gpu, 100))


def test_objects_that_are_copied_with_checksums_are_of_the_host(gpu: StandInDevice) -> None:
    with P2PStore() as store, pytest.raises(OutOfRange, match=r"expected memory of the host, got memory of cuda:0"):
        store.register("weights", Span(gpu.address, 100))
