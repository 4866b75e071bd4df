"""The tcp transport keeps deadlines at both ends, whatever the network does to the bytes."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Generator, Iterator, Sequence

import msgspec
import pytest

from mooncake_core.errors import DeadlineExceeded, PathFailed
from mooncake_core.testing.cluster import wait_for
from mooncake_core.testing.relay import Relay
from mooncake_core.testing.transport_contract import Ends
from mooncake_core.transfer import handshake
from mooncake_core.transfer.contract import Completion, Kind
from mooncake_tcp import TcpTransport, clock, looking
from mooncake_tcp.clock import DRIFT, PeerClock
from mooncake_tcp.frames import REQUEST, RESPONSE, receive_all
from mooncake_tcp.transport import TcpPath

SOON_S = 0.2
FAR_S = 20.0


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends(TcpTransport)
    ends.memory[:] = bytes(len(ends.memory))
    yield ends
    ends.close()


@contextlib.contextmanager
def relayed(ends: Ends) -> Generator[tuple[Relay, bytes]]:
    """A relay, and a path through it on which the connection is open."""
    direct = msgspec.msgpack.decode(ends.export(writable=True), type=TcpPath)
    relay = Relay(direct.host, direct.port)
    path = msgspec.msgpack.encode(TcpPath("127.0.0.1", relay.port, direct.key))
    assert ends.transfer(Kind.READ, path, [memoryview(bytearray(1))], 0) is None
    yield relay, path
    relay.close()


def late(ends: Ends, kind: Kind, path: bytes, piece: memoryview) -> None:
    """A transfer that the network holds until its deadline has passed."""
    operation = ends.operation(kind, path, [piece], 0, timeout_s=SOON_S)
    assert isinstance(ends.complete([operation])[operation.operation_id], DeadlineExceeded)


def test_a_write_that_arrives_after_its_deadline_does_not_land(ends: Ends) -> None:
    with relayed(ends) as (relay, path):
        relay.to_target.hold()
        late(ends, Kind.WRITE, path, memoryview(b"x" * 100))
        relay.to_target.open()
        wait_for(lambda: not ends.target._target._servings)  # type: ignore[attr-defined]
    assert not any(ends.memory)


def test_a_write_under_way_at_its_deadline_is_broken_off_by_the_target(ends: Ends) -> None:
    with relayed(ends) as (relay, path):
        relay.to_target.hold(after_bytes=REQUEST.size + 1000)
        late(ends, Kind.WRITE, path, memoryview(b"x" * 100_000))
        wait_for(lambda: not ends.target._target._servings)  # type: ignore[attr-defined]
    assert bytes(ends.memory[:1001]) == b"x" * 1000 + b"\0", "the rest did not land when it came"


def test_a_read_that_missed_its_deadline_leaves_its_memory_alone(ends: Ends) -> None:
    with relayed(ends) as (relay, path):
        relay.to_initiator.hold(after_bytes=RESPONSE.size + 1000)
        ends.memory[:] = b"x" * len(ends.memory)
        sink = bytearray(100_000)
        late(ends, Kind.READ, path, memoryview(sink))
        sink[:] = bytes(len(sink))
        relay.to_initiator.open()
        time.sleep(SOON_S)
        assert not any(sink)


def test_what_is_under_way_beside_a_late_transfer_is_told_who_how_and_errno(ends: Ends) -> None:
    with relayed(ends) as (relay, path):
        relay.to_target.hold()
        soon, far = (
            ends.operation(Kind.WRITE, path, [memoryview(b"x")], 0, timeout_s=patience_s)
            for patience_s in (SOON_S, FAR_S)
        )
        for operation in (soon, far):  # one by one: so they take the same connection
            ends.initiator.post([operation])
        error = ends.collect(2)[far.operation_id]
        assert isinstance(error, PathFailed)
        assert error.detail == {"peer": f"127.0.0.1:{relay.port}", "path": "tcp", "errno": errno.ETIMEDOUT}


def test_breaking_off_a_write_forgets_what_was_not_sent(ends: Ends) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        path = msgspec.msgpack.encode(TcpPath("127.0.0.1", listener.getsockname()[1], b"k" * 16))
        operation = ends.operation(Kind.WRITE, path, [memoryview(bytes(32 << 20))], 0, timeout_s=SOON_S)
        ends.initiator.post([operation])
        connection, _ = listener.accept()
        with connection:
            assert handshake.welcome(connection, None)
            ends.collect(1)
            connection.settimeout(FAR_S)
            with pytest.raises(ConnectionResetError):
                while connection.recv(1 << 20):
                    pass


def test_a_sender_that_waits_for_room_is_told_when_the_target_closes(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    receives, goes_on = threading.Event(), threading.Event()

    def receive_late(sock: socket.socket, views: Sequence[memoryview], start_bytes: int) -> None:
        receives.set()
        assert goes_on.wait(FAR_S)
        receive_all(sock, views, start_bytes)

    monkeypatch.setattr(looking, "receive_all", receive_late)
    memory, handle = ends.register(8 << 20)
    path = ends.target.export(handle, writable=True)
    assert path is not None
    operation = ends.operation(Kind.WRITE, path, [memoryview(bytes(memory.nbytes))], 0, timeout_s=FAR_S)
    ended: list[Completion | None] = []
    sender = threading.Thread(target=lambda: ended.extend(ends.initiator.move([operation])))
    sender.start()
    assert receives.wait(FAR_S)
    time.sleep(0.2)  # until there is no room any more
    closing = threading.Thread(target=ends.target.close)
    closing.start()
    time.sleep(0.1)  # until the connection is shut down, and gives no room any more
    goes_on.set()
    sender.join(FAR_S / 2)
    assert [type(completion.error) for completion in ended if completion] == [PathFailed]
    closing.join()


@contextlib.contextmanager
def nobody_accepts() -> Generator[bytes]:
    """A path to a host that does not answer a connect."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield msgspec.msgpack.encode(TcpPath("127.0.0.1", listener.getsockname()[1], b"k" * 16))


def test_deadlines_and_closing_interrupt_a_connect(ends: Ends) -> None:
    with nobody_accepts() as path:
        started = time.monotonic()
        ends.initiator.post([ends.operation(Kind.WRITE, path, [memoryview(b"x")], 0, timeout_s=FAR_S)])
        soon = ends.operation(Kind.WRITE, path, [memoryview(b"x")], 0, timeout_s=SOON_S)
        ends.initiator.post([soon])
        assert isinstance(ends.collect(2)[soon.operation_id], DeadlineExceeded)
        ends.initiator.post([ends.operation(Kind.WRITE, path, [memoryview(b"x")], 0, timeout_s=FAR_S)])
        ends.initiator.close()
        assert time.monotonic() - started < FAR_S / 2


def test_a_clock_that_was_misread_is_put_right_by_the_refusal(ends: Ends) -> None:
    path = ends.export(writable=True)
    assert ends.transfer(Kind.READ, path, [memoryview(bytearray(1))], 0) is None
    (connection,) = next(iter(ends.initiator._connections.values()))  # type: ignore[attr-defined]
    connection._clock._heard = (time.monotonic(), -1e6)
    error = ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0)
    assert isinstance(error, PathFailed)
    assert "for late" in str(error)
    assert ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0) is None
    assert next(iter(ends.initiator._connections.values())) == [connection]  # type: ignore[attr-defined]


def test_a_peers_clock_is_never_thought_ahead_of_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(clock.time, "monotonic", lambda: now)
    peer = PeerClock()
    assert peer.at_peer(now) == float("-inf")
    peer.hear(1000.0)  # the fastest message: what was shown then
    assert peer.at_peer(101.0) == 1001.0
    now = 110.0
    peer.hear(1007.0)  # sent three seconds ago
    assert peer.at_peer(110.0) == pytest.approx(1010.0 - 10 * DRIFT)
    now = 120.0
    assert peer.at_peer(110.0) == pytest.approx(1010.0 - 20 * DRIFT)
