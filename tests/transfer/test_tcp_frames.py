"""What goes over a socket in parts comes back whole."""

from __future__ import annotations

import itertools
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import cast

import pytest

from mooncake_core.transfer.contract import Kind, Operation, Range
from mooncake_core.transfer.slices import joined
from mooncake_tcp import looking
from mooncake_tcp.clock import PeerClock
from mooncake_tcp.frames import MAX_VECTORS, RANGE, REQUEST, SOCKET_BUFFER_BYTES, receive_all, receive_first, tune
from mooncake_tcp.looking import Looking
from mooncake_tcp.requests import request
from mooncake_tcp.sending import CALL_BYTES, PART_BYTES, Sender


def connected(segment_bytes: int) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection; with segment_bytes, one whose segments are no longer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.socket()
        if segment_bytes:
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_bytes)
        near.connect(server.getsockname())
        far, _ = server.accept()
    for sock in (near, far):
        tune(sock)
    for _ in range(50):  # by then the kernel knows how long segments may be
        near.sendall(bytes(10_000))
        receive_all(far, [memoryview(bytearray(10_000))])
    return near, far


@pytest.mark.parametrize("segment_bytes", [0, 1000])
@pytest.mark.parametrize(
    ("count", "largest"),
    [
        *itertools.product([1, 2, 2 * MAX_VECTORS + 1], [10, 5_000, 100_000]),
        *itertools.product([1, 2], [3 * CALL_BYTES]),
    ],
)
def test_a_header_and_pieces_of_all_lengths_come_through(count: int, largest: int, segment_bytes: int) -> None:
    draw = random.Random(count * largest)
    pieces = [draw.randbytes(draw.choice([0, 1, draw.randrange(largest), largest])) for _ in range(count)]
    sinks = [memoryview(bytearray(len(piece))) for piece in pieces]
    near, far = connected(segment_bytes)
    with near, far:
        assert (near.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) > PART_BYTES) == (segment_bytes == 0)
        sender = threading.Thread(target=Sender(near).send, args=([b"header", *pieces],))
        sender.start()
        header = memoryview(bytearray(6))
        receive_all(far, sinks, receive_first(far, header, sinks))
        sender.join()
    assert bytes(header) == b"header"
    assert [bytes(sink) for sink in sinks] == pieces


@pytest.mark.parametrize("most_s", [0.0, 1e-6, 10.0])
def test_who_looks_and_who_sleeps_receive_the_same(most_s: float) -> None:
    draw = random.Random(7)
    lengths = [0, 1, 0, 70_000, 3, 600_000, 0]
    pieces = [draw.randbytes(length) for length in lengths]
    sinks = [memoryview(bytearray(length)) for length in lengths]
    near, far = connected(0)
    receiver = Looking(far, most_s)
    with near, far:
        sender = threading.Thread(target=lambda: (time.sleep(0.05), Sender(near).send(pieces), near.close()))
        sender.start()
        assert receiver.look() is (most_s > 1)
        sinks[1][:] = pieces[1]
        receive_all(far, [memoryview(bytearray(1))])
        receiver.receive_all(sinks, 1)
        assert [bytes(sink) for sink in sinks] == pieces
        sender.join()
        with pytest.raises(ConnectionResetError):
            receiver.receive_all(sinks)


def test_a_peer_that_ends_in_the_middle_is_noticed() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.sendall(b"123")
        near.close()
        with pytest.raises(ConnectionResetError):
            receive_all(far, [memoryview(bytearray(2)), memoryview(bytearray(2))])


def test_a_peer_that_has_left_is_an_error_of_the_sender() -> None:
    near, far = connected(0)
    far.close()
    with near, pytest.raises(OSError, match=r"pipe|reset"):
        for _ in range(3):
            Sender(near).send([b"header", bytes(3 * CALL_BYTES)])


def test_signals_that_come_while_it_sends_do_no_harm() -> None:
    content = random.Random(1).randbytes(6 * CALL_BYTES)
    received = memoryview(bytearray(len(content)))
    signals: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: signals.append(number))
    near, far = connected(0)
    try:
        with near, far:
            filled_bytes = fill(near)  # so that it cannot even begin
            sender = threading.Thread(target=Sender(near).send, args=([content],))
            sender.start()
            time.sleep(0.05)
            signal.pthread_kill(cast(int, sender.ident), signal.SIGUSR1)
            receive_all(far, [memoryview(bytearray(filled_bytes))])
            for start in range(0, len(content), CALL_BYTES // 4):
                signal.pthread_kill(cast(int, sender.ident), signal.SIGUSR1)
                time.sleep(0.001)
                receive_all(far, [received[start : start + CALL_BYTES // 4]])
            sender.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert signals
    assert received == content


def fill(sock: socket.socket) -> int:
    """Sends until there is no room; how much that was."""
    sock.setblocking(False)
    num_bytes = 0
    while True:
        try:
            num_bytes += sock.send(bytes(CALL_BYTES))
        except BlockingIOError:
            break
    sock.setblocking(True)
    return num_bytes


@pytest.mark.parametrize(("server_host", "is_set"), [("127.0.0.1", True), ("127.0.0.2", False)])
def test_between_hosts_the_kernel_sizes_the_buffers(server_host: str, is_set: bool) -> None:
    with socket.create_server((server_host, 0)) as server, socket.create_connection(server.getsockname()) as near:
        tune(near)
        found = near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert (found == 2 * SOCKET_BUFFER_BYTES) == is_set  # the kernel doubles it


def test_ranges_side_by_side_are_asked_for_as_one() -> None:
    apart = (Range(0, 10), Range(20, 5), Range(15, 5))
    assert joined(apart) is apart
    assert joined(()) == ()
    together = (Range(0, 10), Range(10, 5), Range(20, 1), Range(21, 1), Range(22, 1), Range(5, 2))
    assert joined(together) == [Range(0, 15), Range(20, 3), Range(5, 2)]


def test_a_request_names_them_as_the_target_reads_them() -> None:
    ranges = (Range(0, 1), Range(7, 2), Range(9, 1), Range(20, 3))
    pieces = (memoryview(bytearray(7)),)
    (frame,) = request(Operation(5, Kind.READ, pieces, b"", ranges, 1.0), b"k" * 16, PeerClock())
    kind, further, number, key, _, offset, length = REQUEST.unpack(frame[: REQUEST.size])
    assert (kind, further, number, key, offset, length) == (Kind.READ, 2, 5, b"k" * 16, 0, 1)
    assert [*RANGE.iter_unpack(frame[REQUEST.size :])] == [(7, 3), (20, 3)]


def test_who_looks_receives_more_pieces_than_go_with_one_call() -> None:
    draw = random.Random(3)
    pieces = [draw.randbytes(draw.choice([0, 1, 700])) for _ in range(3 * MAX_VECTORS + 7)]
    pieces[:MAX_VECTORS] = [b""] * MAX_VECTORS
    sinks = [memoryview(bytearray(len(piece))) for piece in pieces]
    near, far = connected(0)
    with near, far:
        sender = threading.Thread(target=near.sendall, args=(b"".join(pieces),))
        sender.start()
        Looking(far, 10.0).receive_all(sinks)
        sender.join()
    assert [bytes(sink) for sink in sinks] == pieces


def test_who_gets_the_interpreter_late_sleeps_for_the_next_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "PAUSE", 2)
    near, far = connected(0)
    looks: list[float] = []
    delays_s = [2 * looking.CROWDED_S, 0.0, 0.0]

    def look(poll: Callable[[int], object], most_s: float) -> bool:
        looks.append(most_s)
        time.sleep(most_s + delays_s.pop(0))
        return True

    monkeypatch.setattr(looking.busy_poll, "look", look)
    sink = memoryview(bytearray(8))
    with near, far:
        receiver = Looking(far, 1e-3)
        for number in range(4):
            near.sendall(bytes([number]) * 8)
            time.sleep(0.01)
            receiver.receive_all([sink])
            assert sink == bytes([number]) * 8
    assert len(looks) == 2
