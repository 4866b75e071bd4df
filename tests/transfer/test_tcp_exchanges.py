"""Transfers over tcp that the calling thread carries out itself, and what can come between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType

import msgspec
import pytest

from mooncake_core.errors import DeadlineExceeded, PathFailed
from mooncake_core.testing.cluster import wait_for
from mooncake_core.testing.relay import Relay
from mooncake_core.testing.transport_contract import Ends
from mooncake_core.transfer.contract import Completion, Kind, Operation, Range, TransportSettings
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_tcp import TcpTransport
from mooncake_tcp.exchanges import MOST_PER_PEER
from mooncake_tcp.transport import MUCH_BYTES, TcpPath

MIB = 1 << 20


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends(TcpTransport, moves=True)
    yield ends
    ends.close()


def through(relay: Relay, path: bytes) -> bytes:
    """The same export, reached by way of the relay."""
    direct = msgspec.msgpack.decode(path, type=TcpPath)
    return msgspec.msgpack.encode(TcpPath("127.0.0.1", relay.port, direct.key))


def relay_to(path: bytes) -> Relay:
    direct = msgspec.msgpack.decode(path, type=TcpPath)
    return Relay(direct.host, direct.port)


def move(ends: Ends, operation: Operation) -> Completion | None:
    (completion,) = ends.initiator.move([operation])
    return completion


def is_done(completion: Completion | None, number: int) -> bool:
    return completion is not None and (completion.operation_id, completion.error) == (number, None)


def write(ends: Ends, path: bytes, content: bytes = b"x", offset: int = 0, timeout_s: float = 20.0) -> Operation:
    return ends.operation(Kind.WRITE, path, [memoryview(content)], offset, timeout_s)


def test_one_connection_serves_transfers_that_follow_each_other(ends: Ends) -> None:
    path = ends.export(writable=True)
    before = _num_sockets()
    for number in range(5):
        completion = move(ends, write(ends, path, bytes([number]), number))
        assert completion is not None
        assert completion.error is None
    assert _num_sockets() == before + 2, "both of its ends are in this process"
    assert ends.memory[:5] == bytes(range(5))


def test_more_operations_and_ranges_than_may_be_unanswered(ends: Ends) -> None:
    path = ends.export(writable=False)
    sinks = [bytearray(16) for _ in range(1000)]
    reads = [ends.operation(Kind.READ, path, [memoryview(sink)], n * 16) for n, sink in enumerate(sinks)]
    wide_sinks = [bytearray(5000) for _ in range(4)]
    wide = [
        msgspec.structs.replace(
            ends.operation(Kind.READ, path, [memoryview(sink)], 0), ranges=tuple(Range(n * 2, 1) for n in range(5000))
        )
        for sink in wide_sinks
    ]
    completions = ends.initiator.move([*reads, *wide])
    assert [completion.error if completion else "posted" for completion in completions] == [None] * 1004
    assert b"".join(sinks) == ends.memory[:16000]
    assert wide_sinks == [bytearray(bytes(ends.memory[:10000:2]))] * 4


def test_threads_that_find_no_connection_free_are_told_to_post(ends: Ends) -> None:
    path = ends.export(writable=True)
    relay = relay_to(path)
    relay.to_target.hold()
    slow = through(relay, path)
    answers: list[Completion | None] = []
    threads = [
        threading.Thread(target=lambda: answers.append(move(ends, write(ends, slow)))) for _ in range(MOST_PER_PEER)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(ends.initiator._exchanges._lent) == MOST_PER_PEER)  # type: ignore[attr-defined]
    assert move(ends, write(ends, slow)) is None
    relay.to_target.open()
    for thread in threads:
        thread.join()
    assert [answer.error if answer else "posted" for answer in answers] == [None] * MOST_PER_PEER
    relay.close()


def test_much_goes_over_several_connections_unless_they_are_busy(ends: Ends) -> None:
    memory, handle = ends.register(MUCH_BYTES)
    path = ends.target.export(handle, writable=True)
    assert path is not None
    sink = bytearray(MUCH_BYTES)
    much = ends.operation(Kind.READ, path, [memoryview(sink)], 0)
    assert move(ends, much) is None
    short = [ends.operation(Kind.READ, path, [memoryview(sink)[:MIB]], 0) for _ in range(MUCH_BYTES // MIB)]
    assert None not in ends.initiator.move(short)
    in_order = msgspec.structs.replace(much, in_order=True)
    assert is_done(move(ends, in_order), in_order.operation_id)
    assert sink == memory
    relay = relay_to(path)
    relay.to_target.hold()
    slow = through(relay, path)
    answers: list[Completion | None] = []
    for lent, operation in enumerate([write(ends, slow), msgspec.structs.replace(much, path=slow)], 1):
        threading.Thread(target=lambda one=operation: answers.append(move(ends, one))).start()
        wait_for(lambda lent=lent: len(ends.initiator._exchanges._lent) == lent)  # type: ignore[attr-defined]
    relay.to_target.open()
    wait_for(lambda: len(answers) == 2)
    assert [answer.error if answer else "posted" for answer in answers] == [None, None]
    assert move(ends, msgspec.structs.replace(much, path=slow)) is None
    relay.close()


def test_a_connection_that_the_peer_ended_is_opened_anew(ends: Ends) -> None:
    path = ends.export(writable=True)
    assert is_done(move(ends, write(ends, path, b"1")), 1)
    for serving in list(ends.target._target._servings):  # type: ignore[attr-defined]
        serving.shut_down()
    wait_for(lambda: not ends.target._target._servings)  # type: ignore[attr-defined]
    assert is_done(move(ends, write(ends, path, b"2")), 2)
    assert ends.memory[:1] == b"2"


def test_a_late_transfer_ends_and_its_bytes_do_not_land(ends: Ends) -> None:
    path = ends.export(writable=True)
    before = bytes(ends.memory)
    relay = relay_to(path)
    slow = through(relay, path)
    assert is_done(move(ends, write(ends, slow, bytes(before[:1]))), 1)
    relay.to_target.hold()
    completion = move(ends, write(ends, slow, os.urandom(1 << 20), timeout_s=0.2))
    assert completion is not None
    assert isinstance(completion.error, DeadlineExceeded)
    relay.to_target.open()
    assert is_done(move(ends, write(ends, path, bytes(before[:1]))), 3)
    assert ends.memory == before
    relay.close()


def test_closing_ends_a_transfer_under_way(ends: Ends) -> None:
    path = ends.export(writable=True)
    relay = relay_to(path)
    relay.to_target.hold()
    answers: list[Completion | None] = []
    thread = threading.Thread(target=lambda: answers.append(move(ends, write(ends, through(relay, path)))))
    thread.start()
    wait_for(lambda: bool(ends.initiator._exchanges._lent))  # type: ignore[attr-defined]
    ends.initiator.close()
    thread.join(10)
    (completion,) = answers
    assert completion is not None
    assert isinstance(completion.error, PathFailed)
    assert move(ends, write(ends, path)) is None
    relay.close()


def test_an_interrupted_transfer_is_not_mistaken_for_the_next_one() -> None:
    here, there, segment, memory = _engines()
    relay = relay_to(segment.paths["tcp"])
    slow = msgspec.structs.replace(segment, paths={"tcp": through(relay, segment.paths["tcp"])})
    sink = memoryview(bytearray(100))
    assert [done.error for done in here.move(Kind.READ, slow, [([sink], 0)])] == [None]
    relay.to_initiator.hold()
    with InterruptAfter(0.2), pytest.raises(KeyboardInterrupt):
        here.move(Kind.READ, slow, [([sink], 0)])
    relay.to_initiator.open()
    assert [done.error for done in here.move(Kind.READ, slow, [([sink], 100)])] == [None]
    assert sink == memory[100:200]
    for end in (here, there, relay):
        end.close()


def test_what_fails_on_a_connection_is_tried_again_on_another_one() -> None:
    here, there, segment, memory = _engines()
    relay = relay_to(segment.paths["tcp"])
    through_relay = msgspec.structs.replace(segment, paths={"tcp": through(relay, segment.paths["tcp"])})
    sink = memoryview(bytearray(100))
    assert [done.error for done in here.move(Kind.READ, through_relay, [([sink], 0)])] == [None]
    relay.to_initiator.hold()
    cutter = threading.Thread(target=lambda: (_wait_for_lent(here), relay.cut(), relay.to_initiator.open()))
    cutter.start()
    (done,) = here.move(Kind.READ, through_relay, [([sink], 100)])
    cutter.join()
    assert (done.error, done.path) == (None, "tcp")
    assert sink == memory[100:200]
    for end in (here, there, relay):
        end.close()


def test_a_peer_that_was_killed_is_a_failed_path() -> None:
    code = (
        "import time; from mooncake_core.transfer.contract import TransportSettings; from mooncake_tcp import TcpTransport\n"
        "t = TcpTransport(TransportSettings(owner='t', host_id='h', incarnation=2))\n"
        "print(t.export(t.register(memoryview(bytearray(100))), writable=True).hex(), flush=True); time.sleep(60)"
    )
    ends = Ends(TcpTransport, moves=True)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path = bytes.fromhex(process.stdout.readline())
        assert is_done(move(ends, write(ends, path)), 1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    completion = move(ends, write(ends, path))
    assert completion is not None
    assert isinstance(completion.error, PathFailed)
    assert "127.0.0.1" in str(completion.error)
    ends.close()


def _engines() -> tuple[TransferEngine, TransferEngine, SegmentDescriptor, bytes]:
    here, there = (
        TransferEngine(owner=name, host_id="h", incarnation=number, transports=["tcp"])
        for name, number in (("here", 1), ("there", 2))
    )
    content = os.urandom(200)
    return here, there, there.export(there.register_memory(bytearray(content)), writable=True), content


def _wait_for_lent(engine: TransferEngine) -> None:
    wait_for(lambda: bool(engine._paths["tcp"]._exchanges._lent))  # type: ignore[attr-defined]


class InterruptAfter:
    """Ctrl-C in the main thread, some seconds later."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGALRM, self._interrupt)
        signal.setitimer(signal.ITIMER_REAL, self._delay_s)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt


def _num_sockets() -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:
            continue
    return found


def test_an_exchange_that_was_lent_and_never_used_keeps_nobody_from_closing(ends: Ends) -> None:
    _, handle = ends.register(100)
    path = ends.target.export(handle, writable=True)
    assert path is not None
    assert is_done(move(ends, write(ends, path)), 1)
    exchanges = ends.initiator._exchanges  # type: ignore[attr-defined]
    (peer,) = exchanges._idle
    assert exchanges._lend(peer, [(write(ends, path), b"")]) is not None  # an interrupt came then
    closing = threading.Thread(target=ends.initiator.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()


@pytest.mark.parametrize(
    ("processors", "busy_poll_s", "is_given_away"), [(4, 0.0, True), (4, 1e-4, False), (5, 1e-4, True)]
)
def test_threads_that_look_share_much_only_where_each_has_a_processor(
    processors: int, busy_poll_s: float, is_given_away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))

    class LookingEnds(Ends):
        def settings(self, name: str, incarnation: int, secret: bytes | None) -> TransportSettings:
            base = super().settings(name, incarnation, secret)
            return replace(base, busy_poll_s=busy_poll_s, connections_per_peer=2)

    ends = LookingEnds(TcpTransport, moves=True)
    _, handle = ends.register(MUCH_BYTES)
    path = ends.target.export(handle, writable=True)
    assert path is not None
    completion = move(ends, ends.operation(Kind.READ, path, [memoryview(bytearray(MUCH_BYTES))], 0))
    assert (completion is None) is is_given_away
    ends.close()
