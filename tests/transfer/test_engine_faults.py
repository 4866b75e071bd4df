"""The Transfer Engine over paths that fail, and transports that misbehave."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
from collections.abc import Sequence

import msgspec
import pytest

from mooncake_core.errors import DeadlineExceeded, PathFailed
from mooncake_core.testing.cluster import wait_for
from mooncake_core.testing.memory_transport import Hub, MemoryTransport
from mooncake_core.testing.relay import Relay
from mooncake_core.transfer.contract import Completion, Kind, Operation, Range, Transport
from mooncake_core.transfer.engine import State, TransferEngine, TransferRequest, first_error
from mooncake_tcp.transport import TcpPath


def engine(owner: str, incarnation: int, transports: list[str | type[Transport]]) -> TransferEngine:
    return TransferEngine(
        owner=owner, host_id="h", incarnation=incarnation, transports=transports, connections_per_peer=1
    )


def test_a_late_transfer_does_not_fail_others_on_its_connection() -> None:
    here, there = engine("here", 1, ["tcp"]), engine("there", 2, ["tcp"])
    memory = bytearray(10)
    segment = there.export(there.register_memory(memory), writable=True)
    direct = msgspec.msgpack.decode(segment.paths["tcp"], type=TcpPath)
    relay = Relay(direct.host, direct.port)
    path = msgspec.msgpack.encode(TcpPath("127.0.0.1", relay.port, direct.key))
    segment = msgspec.structs.replace(segment, paths={"tcp": path})
    late, innocent = here.allocate_batch(1), here.allocate_batch(1)
    relay.to_target.hold()
    here.submit(innocent, [TransferRequest(Kind.WRITE, (memoryview(b"x"),), segment, (Range(0, 1),))])
    here.submit(late, [TransferRequest(Kind.WRITE, (memoryview(b"y"),), segment, (Range(1, 1),))], timeout_s=0.2)
    assert here.wait(late, 10)
    relay.to_target.open()
    assert here.wait(innocent, 10)
    assert isinstance(late.transfers[0].error, DeadlineExceeded)
    assert innocent.transfers[0].error is None
    assert memory == b"x" + bytes(9)
    for end in (here, there, relay):
        end.close()


async def test_a_path_that_fails_again_is_not_tried_for_ever() -> None:
    hub = Hub()
    tries = []

    class Failing(hub.transport()):  # type: ignore[misc]
        def post(self, operations: list[Operation]) -> None:
            tries.extend(operations)
            super().post(operations)

    here, there = engine("here", 1, [Failing]), engine("there", 2, [hub.transport()])
    segment = there.export(there.register_memory(bytearray(10)), writable=True)
    hub.failing.add("there")
    assert isinstance(first_error(await here.write(segment, [([memoryview(b"x")], 0)])), PathFailed)
    assert len(tries) == 2
    here.close()
    there.close()


class Raising(MemoryTransport):
    """Cannot post, and at first not poll."""

    polls = 0

    def post(self, operations: object) -> None:
        raise OSError(24, "Too many open files")

    def poll(self) -> list[Completion]:
        self.polls += 1
        if self.polls == 1:
            raise OSError(24, "Too many open files")
        return super().poll()


@pytest.mark.parametrize("others", [[], ["tcp"]])
async def test_a_transport_that_cannot_post_is_a_failed_path(others: list[str | type[Transport]]) -> None:
    kind = type("Raising", (Raising,), {"hub": Hub()})
    here, there = engine("here", 1, [kind, *others]), engine("there", 2, [kind, *others])
    segment = there.export(there.register_memory(bytearray(10)), writable=True)
    error = first_error(await here.write(segment, [([memoryview(b"x")], 0)]))
    assert (error is None) if others else isinstance(error, PathFailed)
    here.close()
    there.close()


class HalfRaising(MemoryTransport):
    """Says of the first operation that its path failed, and cannot post the others."""

    def post(self, operations: Sequence[Operation]) -> None:
        self.completions.add(Completion(operations[0].operation_id, PathFailed("the peer cannot be reached")))
        raise OSError(24, "Too many open files")


@pytest.mark.parametrize("others", [[], ["tcp"]])
async def test_what_had_ended_before_a_transport_raised_does_not_end_again(
    others: list[str | type[Transport]], caplog: pytest.LogCaptureFixture
) -> None:
    kind = type("HalfRaising", (HalfRaising,), {"hub": Hub()})
    here, there = engine("here", 1, [kind, *others]), engine("there", 2, [kind, *others])
    memory = bytearray(2)
    segment = there.export(there.register_memory(memory), writable=True)
    error = first_error(await here.write(segment, [([memoryview(b"x")], at) for at in range(2)]))
    assert (error is None and memory == b"xx") if others else isinstance(error, PathFailed)
    here.close()
    there.close()
    assert "was completed twice" not in caplog.text


def test_a_transport_that_cannot_poll_does_not_end_the_collecting() -> None:
    kind = type("Raising", (Raising,), {"hub": Hub(), "post": MemoryTransport.post})
    here, there = engine("here", 1, [kind]), engine("there", 2, [kind])
    segment = there.export(there.register_memory(bytearray(10)), writable=True)
    batch = here.allocate_batch(1)
    here.submit(batch, [TransferRequest(Kind.WRITE, (memoryview(b"x"),), segment, (Range(0, 1),))])
    assert here.wait(batch, 10)
    assert here.status(batch) == [(State.DONE, None)]
    here.close()
    there.close()


@pytest.mark.parametrize("incarnation", [1, 2])
async def test_what_is_submitted_after_closing_fails(incarnation: int) -> None:
    here, there = engine("here", 1, ["tcp"]), engine("there", incarnation, ["tcp"])
    segment = there.export(there.register_memory(bytearray(10)), writable=True)
    here.close()
    async with asyncio.timeout(10):
        assert isinstance(first_error(await here.write(segment, [([memoryview(b"x")], 0)])), PathFailed)
    there.close()


def test_submitting_while_closing_ends_every_transfer() -> None:
    for _ in range(20):
        here, there = engine("here", 1, ["tcp"]), engine("there", 2, ["tcp"])
        segment = there.export(there.register_memory(bytearray(10)), writable=True)
        request = TransferRequest(Kind.WRITE, (memoryview(b"x"),), segment, (Range(0, 1),))
        batch = here.allocate_batch(1000)
        closer = threading.Thread(target=here.close)
        closer.start()
        while closer.is_alive() and len(batch.transfers) < batch.capacity:
            here.submit(batch, [request])
        closer.join()
        assert here.wait(batch, 10)
        there.close()


def test_an_engine_that_cannot_start_frees_what_it_made() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PathFailed, match="cannot listen"):
        TransferEngine(
            owner="a",
            host_id="h",
            incarnation=1,
            transports=["shm", "tcp"],
            listen_port=taken.getsockname()[1],
        )
    wait_for(lambda: (len(os.listdir("/proc/self/fd")), threading.active_count()) == before)


@pytest.mark.parametrize("first", [True, False])
def test_a_ctrl_c_while_a_transfer_begins_is_heard_when_it_has_ended(first: bool) -> None:
    hub = Hub()

    class Interrupted(hub.transport()):  # type: ignore[misc]
        def post(self, operations: list[Operation]) -> None:
            if first:
                signal.raise_signal(signal.SIGINT)
            super().post(operations)
            if not first:
                signal.raise_signal(signal.SIGINT)

    here, there = engine("here", 1, [Interrupted]), engine("there", 2, [hub.transport()])
    memory = bytearray(10)
    segment = there.export(there.register_memory(memory), writable=True)
    with pytest.raises(KeyboardInterrupt):
        here.move(Kind.WRITE, segment, [([memoryview(b"x")], 0)])
    assert (memory[:1], here._under_way._slices) == (b"x", {})
    batch = here.allocate_batch(1)
    with pytest.raises(KeyboardInterrupt):
        here.submit(batch, [TransferRequest(Kind.WRITE, (memoryview(b"y"),), segment, (Range(1, 1),))])
    assert here.wait(batch, 10)
    assert (memory[:2], batch.transfers[0].state) == (b"xy", State.DONE)
    with pytest.raises(KeyboardInterrupt):  # as it was before
        signal.raise_signal(signal.SIGINT)
    here.close()
    there.close()


def test_waiting_in_vain_leaves_nothing_behind() -> None:
    here, there = engine("here", 1, ["tcp"]), engine("there", 2, ["tcp"])
    segment = there.export(there.register_memory(bytearray(10)), writable=True)
    direct = msgspec.msgpack.decode(segment.paths["tcp"], type=TcpPath)
    relay = Relay(direct.host, direct.port)
    relay.to_target.hold()
    path = msgspec.msgpack.encode(TcpPath("127.0.0.1", relay.port, direct.key))
    slow = msgspec.structs.replace(segment, paths={"tcp": path})
    batch = here.allocate_batch(1)
    here.submit(batch, [TransferRequest(Kind.WRITE, (memoryview(b"x"),), slow, (Range(0, 1),))])
    assert [here.wait(batch, 0.001) for _ in range(20)] == [False] * 20
    assert batch.waiting == []
    relay.to_target.open()
    assert here.wait(batch, 10)
    for end in (here, there, relay):
        end.close()
