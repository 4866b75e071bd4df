"""The tcp transport keeps the contract, and what only sockets can do wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mooncake_core.errors import DeadlineExceeded, PathFailed
from mooncake_core.testing.cluster import wait_for
from mooncake_core.testing.transport_contract import Ends, TransportContract
from mooncake_core.transfer.contract import Kind, TransportSettings
from mooncake_tcp import TcpTransport
from mooncake_tcp.frames import tune
from tests.transfer.scarce_threads import room_for

TARGET = """
import sys, time
from mooncake_core.transfer.contract import TransportSettings
from mooncake_tcp import TcpTransport
target = TcpTransport(TransportSettings(owner='t', host_id='h', incarnation=2))
print(target.export(target.register(memoryview(bytearray(64 << 20))), writable=True).hex(), flush=True)
time.sleep(60)
"""


class TestTcp(TransportContract):
    transport = TcpTransport


class LookingEnds(Ends):
    """Both look for what comes before they sleep."""

    def settings(self, name: str, incarnation: int, secret: bytes | None) -> TransportSettings:
        return replace(super().settings(name, incarnation, secret), busy_poll_s=100e-6)


class TestTcpThatLooks(TransportContract):
    transport = TcpTransport

    @pytest.fixture
    def ends(self) -> Iterator[Ends]:
        ends = LookingEnds(TcpTransport, moves=True)
        yield ends
        ends.close()


def test_a_peer_that_stops_answering_cannot_hang_a_transfer() -> None:
    ends = Ends(TcpTransport)
    with subprocess.Popen([sys.executable, "-c", TARGET], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path = bytes.fromhex(process.stdout.readline())
        assert ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0) is None
        os.kill(process.pid, signal.SIGSTOP)
        sink = bytearray(32 << 20)
        operation = ends.operation(Kind.READ, path, [memoryview(sink)], 0, timeout_s=0.3)
        assert isinstance(ends.complete([operation])[operation.operation_id], DeadlineExceeded)
        os.kill(process.pid, signal.SIGKILL)
    ends.close()


def test_a_killed_peer_is_a_failed_path_that_names_peer_path_and_errno() -> None:
    ends = Ends(TcpTransport)
    with subprocess.Popen([sys.executable, "-c", TARGET], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path = bytes.fromhex(process.stdout.readline())
        assert ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0) is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        error = ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0)
        if error is None:  # sent before the kernel said that the peer is gone
            error = ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0)
    assert isinstance(error, PathFailed)
    assert "127.0.0.1" in str(error)
    assert "tcp" in str(error)
    ends.close()


@pytest.mark.parametrize(("initiator", "target"), [(b"a", b"b"), (None, b"b"), (b"a", None)])
def test_another_secret_is_refused(initiator: bytes | None, target: bytes | None) -> None:
    ends = Ends(TcpTransport)
    ends.close()
    ends.initiator = ends.make("initiator", 1, initiator)
    ends.target = ends.make("target", 2, target)
    path = ends.target.export(ends.target.register(memoryview(bytearray(10))), writable=True)
    error = ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0)
    assert isinstance(error, PathFailed)
    assert "another cluster key" in str(error)
    ends.close()


def test_the_same_secret_is_welcome() -> None:
    ends = Ends(TcpTransport)
    ends.close()
    ends.initiator = ends.make("initiator", 1, b"s")
    ends.target = ends.make("target", 2, b"s")
    path = ends.target.export(ends.target.register(memoryview(bytearray(10))), writable=True)
    assert ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0) is None
    ends.close()


def test_garbage_from_a_stranger_does_not_hurt_the_target() -> None:
    ends = Ends(TcpTransport)
    path = ends.target.export(ends.handle, writable=True)
    port = ends.target._target.addresses[0][1]  # type: ignore[attr-defined]
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        stranger.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            while stranger.recv(4096):
                pass
    assert ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0) is None
    ends.close()


def test_a_data_port_in_use_is_named() -> None:
    first = TcpTransport(TransportSettings(owner="a", host_id="h", incarnation=1))
    port = first._target.addresses[0][1]
    with pytest.raises(PathFailed, match=f"cannot listen on 127.0.0.1:{port}"):
        TcpTransport(TransportSettings(owner="b", host_id="h", incarnation=2, listen_port=port))
    first.close()


def test_a_dead_connection_is_opened_anew() -> None:
    ends = Ends(TcpTransport)
    path = ends.target.export(ends.handle, writable=True)
    assert ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0) is None
    for pool in list(ends.initiator._connections.values()):  # type: ignore[attr-defined]
        for connection in list(pool):
            connection.end(PathFailed("cut by the test"))
    deadline = time.monotonic() + 10
    while ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0) is not None:
        assert time.monotonic() < deadline
    ends.close()


def test_a_target_out_of_descriptors_takes_connections_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Ends(TcpTransport)
    path = ends.export(writable=True)
    failures = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ECONNABORTED, "aborted")]
    accept = socket.socket.accept

    def failing(self: socket.socket) -> object:
        accepted = accept(self)
        if failures:
            accepted[0].close()
            raise failures.pop()
        return accepted

    monkeypatch.setattr(socket.socket, "accept", failing)
    while failures:
        _wake_acceptor(ends)
    assert ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0) is None
    ends.close()


def _wake_acceptor(ends: Ends) -> None:
    socket.create_connection(("127.0.0.1", ends.target._target.addresses[0][1])).close()  # type: ignore[attr-defined]


def test_a_target_out_of_threads_takes_connections_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Ends(TcpTransport)
    path = ends.export(writable=True)
    start = threading.Thread.start
    refused: list[str] = []

    def failing(self: threading.Thread) -> None:
        if self.name == "tcp-serve" and not refused:
            refused.append(self.name)
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", failing)
    _wake_acceptor(ends)
    wait_for(lambda: bool(refused))
    assert ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0) is None
    ends.close()


def test_an_initiator_out_of_threads_fails_the_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Ends(TcpTransport)
    path = ends.export(writable=True)
    start = threading.Thread.start

    def failing(self: threading.Thread) -> None:
        if self.name.startswith("tcp-from-"):
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", failing)
    assert isinstance(ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0), PathFailed)
    monkeypatch.undo()
    assert ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0) is None
    ends.close()


def test_an_initiator_without_room_for_a_connection_fails_only_what_would_have_taken_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = Ends(TcpTransport)
    other = ends.make("other", 3)
    unreached = other.export(other.register(memoryview(bytearray(1))), writable=True)
    assert unreached is not None
    refused = room_for(monkeypatch, 1, "tcp-to-")
    paths = ends.export(writable=True), unreached
    operations = [ends.operation(Kind.WRITE, path, [memoryview(b"x")], 0) for path in paths]
    carried, failed = dict(sorted(ends.complete(operations).items())).values()
    assert carried is None
    assert isinstance(failed, PathFailed)
    assert failed.detail["errno"] == errno.EAGAIN
    assert f"tcp-to-{failed.detail['peer']}" in refused
    monkeypatch.undo()
    assert ends.transfer(Kind.WRITE, unreached, [memoryview(b"x")], 0) is None
    ends.close()
    other.close()


def test_connections_that_there_is_no_room_for_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Ends(TcpTransport)
    path = ends.export(writable=True)
    refused = room_for(monkeypatch, 1, "tcp-to-")
    operations = [ends.operation(Kind.WRITE, path, [memoryview(b"x")], 0) for _ in range(8)]
    assert set(ends.complete(operations).values()) == {None}
    assert refused
    ends.close()


def test_both_ends_notice_a_host_that_vanishes() -> None:
    with socket.socket() as sock:
        tune(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert 0 < sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000


def test_single_transfers_open_further_connections_only_when_all_are_busy() -> None:
    ends = Ends(TcpTransport)
    path = ends.export(writable=True)
    for count, num_bytes in ((1, 1), (1, 4096), (2, 1 << 20)):
        operations = [ends.operation(Kind.WRITE, path, [memoryview(bytes(num_bytes))], 0) for _ in range(8)]
        for operation in operations:
            ends.initiator.post([operation])
        assert set(ends.collect(len(operations)).values()) == {None}
        assert [len(pool) for pool in ends.initiator._connections.values()] == [count]  # type: ignore[attr-defined]
    ends.close()
