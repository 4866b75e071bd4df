"""How shm gets to know its peers: stopped ones, busy ones, and when either side is out of something."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mooncake_core.errors import DeadlineExceeded, PathFailed, StaleSegment, TransferError
from mooncake_core.testing.cluster import process_state, wait_for
from mooncake_core.testing.transport_contract import Ends
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_shm import ShmTransport, peers, target, transport
from mooncake_shm.introduction import Gone, Have, Want, receive_news, send
from mooncake_shm.transport import ShmPath

SOON_S = 0.3
FAR_S = 20.0
NUM_REGIONS = 2
MORE_THAN_FITS = 1000
"""Notices, into what a socket holds."""
TARGET = f"""
import sys
from mooncake_core.transfer.contract import TransportSettings
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_shm import ShmTransport
target = ShmTransport(TransportSettings(owner='t', host_id='h', incarnation=2))
memories = [SharedMemory('t', 4096) for _ in range({NUM_REGIONS})]
for memory in memories:
    print(target.export(target.register(memory.view, memory.descriptor), writable=True).hex(), flush=True)
for line in sys.stdin:
    print(b''.join(bytes(memory.view[:4]) for memory in memories).hex(), flush=True)
"""


class Target:
    """A target in a process of its own, with two regions, that can be stopped."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", TARGET], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.paths = [bytes.fromhex(self._line()) for _ in range(NUM_REGIONS)]

    def stop(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)
        wait_for(lambda: process_state(self._process.pid) == "T")

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def contents(self) -> bytes:
        """The first four bytes of each region."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return bytes.fromhex(self._line())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends(ShmTransport)
    yield ends
    ends.close()


@pytest.fixture
def stranger() -> Iterator[Target]:
    stranger = Target()
    yield stranger
    stranger.kill()


def late(ends: Ends, path: bytes) -> None:
    """A write that its peer does not answer in time."""
    operation = ends.operation(Kind.WRITE, path, [memoryview(b"late")], 0, timeout_s=SOON_S)
    started = time.monotonic()
    assert isinstance(ends.complete([operation])[operation.operation_id], DeadlineExceeded)
    assert time.monotonic() - started < 5 * SOON_S


def test_the_answer_to_a_late_wish_is_not_taken_for_that_to_the_next(ends: Ends, stranger: Target) -> None:
    first, second = stranger.paths
    stranger.stop()
    late(ends, first)
    stranger.go_on()
    assert ends.transfer(Kind.WRITE, second, [memoryview(b"here")], 0) is None
    sink = bytearray(4)
    assert ends.transfer(Kind.READ, second, [memoryview(sink)], 0) is None
    assert sink == b"here"
    assert stranger.contents() == bytes(4) + b"here"


def test_stopped_peers_delay_neither_the_poster_nor_other_peers(ends: Ends, stranger: Target) -> None:
    mapped, unmapped = stranger.paths
    assert ends.transfer(Kind.READ, mapped, [memoryview(bytearray(1))], 0) is None
    second = Target()
    started = time.monotonic()
    for stopped in (stranger, second):
        stopped.stop()
    held = [
        ends.operation(Kind.WRITE, path, [memoryview(b"x")], 0, timeout_s=5 * SOON_S)
        for path in (unmapped, unmapped, mapped, second.paths[0], second.paths[1])
    ]
    ends.initiator.post(held)
    good = ends.operation(Kind.READ, mapped, [memoryview(bytearray(1))], 0)
    own = ends.operation(Kind.WRITE, ends.export(writable=True), [memoryview(b"x")], 0)
    ends.initiator.post([good, own])
    assert set(ends.collect(2).items()) == {(good.operation_id, None), (own.operation_id, None)}
    assert time.monotonic() - started < 5 * SOON_S
    assert all(isinstance(error, DeadlineExceeded) for error in ends.collect(len(held)).values())
    second.kill()


def test_a_peer_that_does_not_answer_is_a_failed_path_before_the_deadline(
    ends: Ends, stranger: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "TIMEOUT_S", SOON_S)
    stranger.stop()
    error = ends.transfer(Kind.WRITE, stranger.paths[0], [memoryview(b"x")], 0)
    assert isinstance(error, PathFailed)
    assert error.detail["errno"] == errno.ETIMEDOUT
    stranger.go_on()
    assert ends.transfer(Kind.WRITE, stranger.paths[0], [memoryview(b"x")], 0) is None


def test_a_peer_with_a_long_queue_is_not_taken_for_dead(ends: Ends, stranger: Target) -> None:
    (first, _), name = stranger.paths, _named(stranger.paths[0]).socket
    stranger.stop()
    with contextlib.ExitStack() as held:
        for _ in range(2 * target.BACKLOG):
            sock = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))
            try:
                sock.connect("\0" + name)
            except BlockingIOError:
                break
        else:
            pytest.fail("the queue has no end")
        late(ends, first)
        stranger.go_on()
        assert ends.transfer(Kind.WRITE, first, [memoryview(b"x")], 0) is None


def test_who_is_killed_while_others_wait_for_it_is_a_failed_path(ends: Ends, stranger: Target) -> None:
    stranger.stop()
    operations = [ends.operation(Kind.WRITE, path, [memoryview(b"x")], 0) for path in stranger.paths]
    ends.initiator.post(operations)
    stranger.kill()
    for error in ends.collect(len(operations)).values():
        assert isinstance(error, PathFailed)
    again = ends.transfer(Kind.WRITE, stranger.paths[0], [memoryview(b"x")], 0)
    assert isinstance(again, PathFailed)
    assert again.detail["errno"] == errno.ECONNREFUSED


def test_closing_fails_who_waits_for_a_peer(ends: Ends, stranger: Target) -> None:
    stranger.stop()
    ends.initiator.post([ends.operation(Kind.WRITE, path, [memoryview(b"x")], 0) for path in stranger.paths])
    ends.initiator.close()
    assert [type(completion.error) for completion in ends.initiator.poll()] == [PathFailed] * NUM_REGIONS


def test_an_initiator_out_of_descriptors_fails_its_transfers_and_goes_on(ends: Ends) -> None:
    path = ends.export(writable=True)
    with _few_descriptors():
        operation = ends.operation(Kind.WRITE, path, [memoryview(b"x")], 0)
        ends.initiator.post([operation])
        error = _first_completion(ends)
    assert isinstance(error, PathFailed)
    assert error.detail["errno"] == errno.EMFILE
    assert ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0) is None


def test_a_target_out_of_descriptors_is_a_failed_path_and_not_taken_for_dead(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ends.export(writable=True)
    failures = [OSError(errno.EMFILE, "Too many open files")]
    monkeypatch.setattr(transport.os, "open", _failing(os.open, failures))
    error = ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0)
    assert isinstance(error, PathFailed)
    assert error.detail["errno"] == errno.EMFILE
    assert ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0) is None


def test_a_target_that_ends_a_connection_for_an_error_of_its_own_is_not_taken_for_dead(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ends.export(writable=True)
    monkeypatch.setattr(target, "send", _failing(send, [OSError(errno.ETOOMANYREFS, "Too many references")]))
    assert isinstance(ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0), PathFailed)
    assert ends.transfer(Kind.WRITE, path, [memoryview(b"y")], 0) is None


def test_a_target_that_cannot_accept_does_later(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ends.export(writable=True)
    failures = [OSError(errno.EMFILE, "Too many open files")] * 2
    monkeypatch.setattr(socket.socket, "accept", _failing(socket.socket.accept, failures))
    assert ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0) is None
    assert not failures


def test_whatever_goes_wrong_in_a_copy_is_a_completion(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ends.export(writable=True)
    monkeypatch.setattr(transport, "copy", _failing(transport.copy, [MemoryError()] * 2))
    for _ in range(2):  # by a copier, then by the poster
        assert isinstance(ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0), TransferError)
    assert ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0) is None


def test_a_peer_gets_a_control_page_it_can_neither_write_nor_cut(ends: Ends) -> None:
    named = _named(ends.export(writable=True))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect("\0" + named.socket)
        send(sock, Want(named.region, named.slot, named.generation, write=False))
        news, descriptors = receive_news(sock)
    assert isinstance(news, Have)
    page, region = descriptors
    for descriptor in descriptors:
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    again = os.open(f"/proc/self/fd/{page}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.ftruncate(again, 0)
    _close_all([again, page, region])


def test_an_unregistered_region_is_unmapped_by_its_peers(ends: Ends) -> None:
    memory = SharedMemory("gone", 4096)
    handle = ends.target.register(memory.view, memory.descriptor)
    path = ends.target.export(handle, writable=True)
    assert path is not None
    for kind in Kind:
        assert ends.transfer(kind, path, [memoryview(bytearray(1))], 0) is None
    ends.target.unregister(handle)
    memory.close()
    wait_for(lambda: "memfd:mooncake-gone" not in Path("/proc/self/maps").read_text())
    assert isinstance(ends.transfer(Kind.READ, path, [memoryview(bytearray(1))], 0), StaleSegment)
    assert ends.transfer(Kind.READ, ends.export(writable=False), [memoryview(bytearray(1))], 0) is None


def test_an_answer_that_finds_no_room_is_given_once_there_is_some(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")] * 3
    monkeypatch.setattr(target, "send", _failing(send, failures))
    assert ends.transfer(Kind.WRITE, ends.export(writable=True), [memoryview(b"x")], 0) is None
    assert not failures


def test_who_stood_still_hears_of_every_region_that_was_unregistered_and_then_is_answered(ends: Ends) -> None:
    named = _named(ends.export(writable=True))
    want = Want(named.region, named.slot, named.generation, write=False)
    regions = [ends.target.register(memoryview(bytearray(1))) for _ in range(MORE_THAN_FITS)]
    heard: list[int] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(FAR_S)
        sock.connect("\0" + named.socket)
        send(sock, want)
        _close_all(receive_news(sock)[1])
        for region in regions:
            ends.target.unregister(region)
        send(sock, want)
        news, descriptors = receive_news(sock)
        while isinstance(news, Gone):
            heard.append(news.region)
            news, descriptors = receive_news(sock)
    _close_all(descriptors)
    assert heard == regions
    assert news == Have(found=True, length=1 << 20)


def _named(path: bytes) -> ShmPath:
    return msgspec.msgpack.decode(path, type=ShmPath)


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _failing(real: Callable[..., Any], failures: list[Any]) -> Callable[..., Any]:
    """Raises these first."""

    def call(*arguments: Any, **named: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*arguments, **named)

    return call


@contextlib.contextmanager
def _few_descriptors() -> Generator[None]:
    """All descriptors are taken."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _first_completion(ends: Ends) -> Exception | None:
    return next(iter(ends.collect(1).values()))
