"""Endpoints: memory by address, peers by name, notifications, and what happens when the other end changes."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from mooncake_core.errors import (
    AuthenticationFailed,
    ConfigError,
    MemoryOverlaps,
    NotRegistered,
    OutOfRange,
    PeerUnreachable,
    StaleSegment,
    TransferError,
)
from mooncake_core.transfer import Endpoint, Kind, Notification, Request, Span, State
from mooncake_core.transfer.addresses import address_of
from mooncake_core.wire.auth import ClusterKey

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=["shm", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ends(transport: str) -> Iterator[tuple[Endpoint, Endpoint]]:
    with Endpoint(transports=[transport]) as here, Endpoint(transports=[transport]) as there:
        yield here, there


def test_bytes_go_there_and_back(ends: tuple[Endpoint, Endpoint], transport: str) -> None:
    here, there = ends
    memory = there.allocate_memory(1 << 20)
    peer = here.open(there.name)
    address = address_of(memory.view)
    assert peer.first_address == address
    sent = os.urandom(300_000)
    assert here.write(peer, sent, address + 5).path == transport
    assert memory.view[5:300_005] == sent
    back = bytearray(300_000)
    here.read(peer, back, address + 5)
    assert back == sent


def test_gather_and_scatter_lists(ends: tuple[Endpoint, Endpoint]) -> None:
    here, there = ends
    memory = there.allocate_memory(100)
    address = address_of(memory.view)
    peer = here.open(there.name)
    here.write(peer, [b"abc", b"defg"], [Span(address + 50, 2), Span(address, 5)])
    assert (memory.view[50:52], memory.view[:5]) == (b"ab", b"cdefg")
    one, two = bytearray(3), bytearray(4)
    here.read(peer, [one, two], [Span(address, 5), Span(address + 50, 2)])
    assert (one, two) == (b"cde", b"fgab")


def test_many_small_pieces(ends: tuple[Endpoint, Endpoint]) -> None:
    here, there = ends
    memory, other = there.allocate_memory(1 << 16), there.allocate_memory(1 << 16)
    starts = [address_of(memory.view), address_of(other.view)]
    peer = here.open(there.name)
    values = [os.urandom(1 + index % 50) for index in range(1000)]
    addresses = [starts[index % 2] + 60 * index for index in range(1000)]
    here.move(Kind.WRITE, peer, [memoryview(value) for value in values], addresses)
    for index, value in enumerate(values):
        place = (memory, other)[index % 2].view[60 * index :]
        assert place[: len(value)] == value
    sinks = [bytearray(len(value)) for value in values]
    here.move(Kind.READ, peer, [memoryview(sink) for sink in sinks], addresses)
    assert sinks == values


@pytest.mark.parametrize("kind", ["array", "tensor", "bfloat16", "span", "ctypes", "bytearray"])
def test_memories_of_every_kind(kind: str) -> None:
    with Endpoint(transports=["tcp"]) as here, Endpoint(transports=["tcp"]) as there:
        if kind == "array":
            memory = np.zeros((10, 10), np.float32)
        elif kind in ("tensor", "bfloat16"):
            torch = pytest.importorskip("torch")
            memory = torch.zeros(10, 20, dtype=torch.bfloat16 if kind == "bfloat16" else torch.float16)
        elif kind == "span":
            kept = ctypes.create_string_buffer(400)
            memory = Span(ctypes.addressof(kept), 400)
        else:
            memory = (ctypes.c_char * 400)() if kind == "ctypes" else bytearray(400)
        address = there.register_memory(memory)
        sent = os.urandom(400)
        peer = here.open(there.name)
        here.write(peer, sent, address)
        assert ctypes.string_at(address, 400) == sent
        sink = np.empty(100, np.float32)
        here.read(peer, sink, address)
        assert sink.tobytes() == sent
        there.unregister_memory(address)
        with pytest.raises(NotRegistered):
            here.write(peer, sent, address)


def test_memory_that_cannot_be_used_is_refused() -> None:
    with Endpoint(transports=["tcp"]) as here:
        memory = bytearray(1000)
        address = here.register_memory(memory)
        with pytest.raises(MemoryOverlaps, match="unregister those first"):
            here.register_memory(Span(address + 10, 5))
        with pytest.raises(OutOfRange, match="contiguous"):
            here.register_memory(np.zeros((10, 10))[:, 3])
        with pytest.raises(OutOfRange, match="read-only"):
            here.register_memory(b"abc")
        with pytest.raises(OutOfRange, match="the CPU cannot read"):
            here.register_memory(Span(4096, 10))
        with pytest.raises(OutOfRange, match="at least one byte"):
            here.register_memory(bytearray())
        with pytest.raises(NotRegistered):
            here.unregister_memory(address + 1)
        here.unregister_memory(address)
        assert here.register_memory(memory) == address


def test_what_is_not_there_is_said(ends: tuple[Endpoint, Endpoint]) -> None:
    here, there = ends
    memory = there.allocate_memory(100)
    address = address_of(memory.view)
    peer = here.open(there.name)
    with pytest.raises(NotRegistered, match="no memory that holds 10 bytes"):
        here.write(peer, bytes(10), address + 95)
    with pytest.raises(OutOfRange, match="written to"):
        here.read(peer, bytes(10), address)
    with pytest.raises(OutOfRange):
        here.write(peer, bytes(10), [Span(address, 3)])
    with pytest.raises(ConfigError, match="host:port"):
        here.open("nobody")
    with pytest.raises(PeerUnreachable):
        here.open("127.0.0.1:1")
    with pytest.raises(ConfigError, match="open to everybody"):
        Endpoint("192.0.2.7")
    with pytest.raises(ConfigError, match="all of them"):
        Endpoint("0.0.0.0")


def test_what_peers_may_only_read_is_not_written(ends: tuple[Endpoint, Endpoint]) -> None:
    here, there = ends
    memory = bytearray(b"untouched")
    address = there.register_memory(memory, writable=False)
    peer = here.open(there.name)
    if "shm" in peer.find(address, 1)[0].paths:
        pytest.fail("a bytearray has no descriptor")
    if "tcp" in peer.find(address, 1)[0].paths:
        sink = bytearray(9)
        here.read(peer, sink, address)
        assert sink == memory
    with pytest.raises(TransferError):
        here.write(peer, b"something", address)
    assert memory == b"untouched"


def test_memory_registered_later_is_found_and_again_when_registered_anew(ends: tuple[Endpoint, Endpoint]) -> None:
    here, there = ends
    peer = here.open(there.name)
    assert peer.first_address is None
    memory = there.allocate_memory(10)
    address = address_of(memory.view)
    here.write(peer, b"first", address)
    there.unregister_memory(address)
    with pytest.raises(NotRegistered):
        here.write(peer, b"never", address)
    there.register_memory(memory.view, descriptor=memory.descriptor)
    here.write(peer, b"again", address)
    there.unregister_memory(address)  # known, but of another export
    there.register_memory(memory.view, descriptor=memory.descriptor)
    here.write(peer, b"third", address)
    assert memory.view[:5] == b"third"


def test_a_peer_that_was_started_anew_is_not_written_to(transport: str) -> None:
    with Endpoint(transports=[transport]) as here:
        with Endpoint(transports=[transport]) as first:
            memory = first.allocate_memory(10)
            address, port = address_of(memory.view), first.port
            peer = here.open(first.name)
            here.write(peer, b"first", address)
        with Endpoint(transports=[transport], port=port) as second:
            second.register_memory(memory.view, descriptor=memory.descriptor)  # even at the same address
            for _ in range(2):
                with pytest.raises(StaleSegment, match="started anew"):
                    here.write(peer, b"wrong", address)
            assert memory.view[:5] == b"first"
            here.write(here.open(second.name), b"right", address)
            assert memory.view[:5] == b"right"


def test_a_peer_that_is_gone(ends: tuple[Endpoint, Endpoint]) -> None:
    here, there = ends
    memory = there.allocate_memory(10)
    peer = here.open(there.name)
    here.write(peer, b"first", address_of(memory.view))
    there.close()
    with pytest.raises((TransferError, PeerUnreachable)):
        here.write(peer, b"later", address_of(memory.view))
    with pytest.raises(PeerUnreachable):
        here.probe(there.name)


def test_batches(ends: tuple[Endpoint, Endpoint]) -> None:
    here, there = ends
    memory = there.allocate_memory(1000)
    address = address_of(memory.view)
    peer = here.open(there.name)
    batch = here.allocate_batch(3)
    sink = bytearray(4)
    here.submit(batch, [Request(Kind.WRITE, peer, b"abcd", address), Request(Kind.WRITE, peer, b"efgh", address + 500)])
    assert here.wait(batch, 10)
    here.submit(batch, [Request(Kind.READ, peer, sink, address + 500)])
    assert here.wait(batch, 10)
    assert here.status(batch) == [(State.DONE, None)] * 3
    assert sink == b"efgh"
    with pytest.raises(OutOfRange, match="a batch of 3"):
        here.submit(batch, [Request(Kind.READ, peer, sink, address)])
    here.free(batch)


def test_notifications_come_after_the_bytes(ends: tuple[Endpoint, Endpoint]) -> None:
    here, there = ends
    memory = there.allocate_memory(1 << 20)
    address = address_of(memory.view)
    peer = here.open(there.name)
    for turn in range(1, 6):
        batch = here.allocate_batch(1)
        here.submit(
            batch,
            [Request(Kind.WRITE, peer, bytes([turn]) * (1 << 20), address)],
            notify=Notification("turn", str(turn)),
        )
        (notification,) = there.take_notifications(10)
        assert notification == ("turn", str(turn))
        assert memory.view[-1] == turn
    here.write(peer, b"x", address, notify=Notification("last", ""))
    assert there.take_notifications() == [("last", "")]
    assert there.take_notifications() == []


def test_a_failed_batch_notifies_nobody() -> None:
    with Endpoint(transports=["tcp"]) as here, Endpoint(transports=["tcp"]) as there:
        address = there.register_memory(bytearray(100), writable=False)
        peer = here.open(there.name)
        batch = here.allocate_batch(1)
        here.submit(batch, [Request(Kind.WRITE, peer, b"x", address)], notify=Notification("never", ""))
        assert here.wait(batch, 10)
        here.notify(peer, Notification("after", ""))
        assert there.take_notifications() == [("after", "")]


async def test_on_an_event_loop(ends: tuple[Endpoint, Endpoint]) -> None:
    here, there = ends
    memory = there.allocate_memory(40_000)
    address = address_of(memory.view)
    peer = await here.open_async(there.name)
    values = [os.urandom(1000) for _ in range(40)]
    await asyncio.gather(
        *(
            here.transfer_async(Request(Kind.WRITE, peer, value, address + 1000 * index))
            for index, value in enumerate(values)
        )
    )
    assert memory.view == b"".join(values)
    await here.transfer_async(Request(Kind.WRITE, peer, b"x", address), notify=Notification("done", "1"))
    assert there.take_notifications() == [("done", "1")]
    there.close()
    with pytest.raises((TransferError, PeerUnreachable)):
        await here.transfer_async(Request(Kind.WRITE, peer, b"y", address))


def test_ten_threads_at_once(ends: tuple[Endpoint, Endpoint]) -> None:
    here, there = ends
    memory = there.allocate_memory(10 * 50_000)
    address = address_of(memory.view)

    def work(number: int) -> bool:
        peer = here.open(there.name)
        place = address + number * 50_000
        for turn in range(20):
            sent, back = bytes([number, turn]) * 25_000, bytearray(50_000)
            here.write(peer, sent, place)
            here.read(peer, back, place)
            if back != sent:
                return False
        return True

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(work, range(10))) == [True] * 10


def test_only_who_has_the_key_is_served() -> None:
    key = ClusterKey.generate()
    with Endpoint(key=key) as there, Endpoint(key=key) as friend, Endpoint() as stranger:
        address = there.register_memory(bytearray(10))
        friend.write(friend.open(there.name), b"hello", address)
        with pytest.raises(AuthenticationFailed):
            stranger.open(there.name)


def test_the_same_process_is_a_peer_too() -> None:
    with Endpoint() as here:
        memory = bytearray(10)
        address = here.register_memory(memory)
        assert here.write(here.open(here.name), b"hello", address).path == "local"
        assert memory[:5] == b"hello"


@pytest.mark.parametrize("transports", [["tcp"], ["shm"]])
def test_peers_that_have_ended_leave_nothing(transports: list[str]) -> None:
    with Endpoint(transports=transports) as here:

        def meet() -> None:
            with Endpoint(transports=transports) as there:
                memory = there.allocate_memory(10)
                here.write(here.open(there.name), b"hello", address_of(memory.view))
                there.free_memory(memory)

        meet()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            meet()
        assert len(os.listdir("/proc/self/fd")) < before + 20


def test_nothing_is_left() -> None:
    def count() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    def once() -> None:
        with Endpoint() as here, Endpoint() as there:
            memory = there.allocate_memory(10)
            here.write(here.open(there.name), b"hello", address_of(memory.view))
            there.free_memory(memory)

    once()
    time.sleep(0.1)
    before = count()
    for _ in range(5):
        once()
    deadline = time.monotonic() + 10
    while count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert count() <= before


def test_a_notification_waits_for_its_own_transfers_also_where_those_before_end_meanwhile(
    ends: tuple[Endpoint, Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = ends
    memory = there.allocate_memory(100)
    peer = here.open(there.name)
    request = Request(Kind.WRITE, peer, b"x", address_of(memory.view))
    batch = here.allocate_batch(2)
    here.submit(batch, [request])
    submit = here._engine.submit

    def late(*arguments: Any, **options: Any) -> None:
        assert here.wait(batch, 10)
        here.notify(peer, Notification("before", ""))
        submit(*arguments, **options)

    monkeypatch.setattr(here._engine, "submit", late)
    here.submit(batch, [request], notify=Notification("after", ""))
    assert here.wait(batch, 10)
    told: list[Notification] = []
    while len(told) < 2:
        told += there.take_notifications(timeout_s=10)
    assert [notification.name for notification in told] == ["before", "after"]


def test_nobody_is_told_of_what_failed_however_soon_the_batch_is_given_back(
    ends: tuple[Endpoint, Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = ends
    memory = there.allocate_memory(100)
    peer = here.open(there.name)
    address = address_of(memory.view)
    there.free_memory(memory)
    batch = here.allocate_batch(1)
    ended = here._batch_ended

    def late(*arguments: Any) -> None:
        while batch.pending:
            time.sleep(0.001)
        here.free(batch)
        ended(*arguments)

    monkeypatch.setattr(here, "_batch_ended", late)
    here.submit(batch, [Request(Kind.WRITE, peer, b"x", address)], notify=Notification("never", ""))
    assert here.wait(batch, 10)
    here.notify(peer, Notification("after", ""))
    assert there.take_notifications(timeout_s=10) == [Notification("after", "")]
