"""A peer that listens on several addresses: its connections are spread over them, and go elsewhere when one is lost."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import msgspec
import pytest
from msgspec import structs

from mooncake_core.errors import PathFailed
from mooncake_core.testing.cluster import wait_for
from mooncake_core.testing.relay import Relay
from mooncake_core.testing.transport_contract import Ends, TransportContract
from mooncake_core.transfer import handshake
from mooncake_core.transfer.contract import Kind, TransportSettings
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.exports import Exports
from mooncake_core.transfer.lanes import Lanes
from mooncake_core.transfer.pinned import PinnedBuffers
from mooncake_core.transfer.weights import Weights
from mooncake_tcp import TcpTransport, links
from mooncake_tcp.connecting import Dialer
from mooncake_tcp.frames import NAME, REQUEST
from mooncake_tcp.links import FIRST_BACK_OFF_S, Links
from mooncake_tcp.plain import PlainSockets
from mooncake_tcp.target import Target
from mooncake_tcp.transport import TcpPath
from tests.transfer.scarce_threads import room_for

HOSTS = ("127.0.0.1", "127.0.0.2")
PEER = (("10.0.0.1", 1), ("10.1.0.1", 1))


class SeveralEnds(Ends):
    """Both listen on two addresses."""

    def settings(self, owner: str, incarnation: int, secret: bytes | None) -> TransportSettings:
        usual = super().settings(owner, incarnation, secret)
        return replace(usual, listen_host=HOSTS[0], further_hosts=HOSTS[1:])


class TestSeveralAddresses(TransportContract):
    transport = TcpTransport

    @pytest.fixture(params=[False, True], ids=["post", "move"])
    def ends(self, request: pytest.FixtureRequest) -> Iterator[Ends]:
        ends = SeveralEnds(TcpTransport, moves=request.param)
        yield ends
        ends.close()


def test_what_failed_is_set_aside_longer_each_time() -> None:
    found = Links(Dialer(None, Lanes(), PlainSockets()), Weights())
    assert found.good(PEER, 0.0) == [*PEER]
    found.fail(PEER[0], 0.0)
    assert found.good(PEER, 0.5 * FIRST_BACK_OFF_S) == [PEER[1]]
    found.fail(PEER[0], 0.5 * FIRST_BACK_OFF_S)  # another connection of the same failure
    assert found.good(PEER, FIRST_BACK_OFF_S) == [*PEER]
    found.fail(PEER[0], FIRST_BACK_OFF_S)
    assert not found.is_good(PEER[0], 2.5 * FIRST_BACK_OFF_S)
    assert found.is_good(PEER[0], 3 * FIRST_BACK_OFF_S)
    found.fail(PEER[1], FIRST_BACK_OFF_S)
    assert found.good(PEER, 1.5 * FIRST_BACK_OFF_S) == [*PEER]  # all have failed: any may be tried


def test_links_take_turns() -> None:
    found = Links(Dialer(None, Lanes(), PlainSockets()), Weights())
    assert [found.next(PEER, PEER, 1) for _ in range(4)] == [*PEER, *PEER]


@pytest.mark.parametrize("count", [0, 1])
def test_an_initiator_without_room_for_connections_over_all_links_uses_those_it_has(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    ends = SeveralEnds(TcpTransport)
    path = ends.export(writable=True)
    refused = room_for(monkeypatch, count, "tcp-to-")
    operations = [ends.operation(Kind.WRITE, path, [memoryview(b"x")], 0) for _ in range(8)]
    errors = ends.complete(operations).values()
    assert all((error is None) if count else isinstance(error, PathFailed) for error in errors)
    assert refused
    monkeypatch.undo()
    assert ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0) is None
    ends.close()
    wait_for(lambda: threading.active_count() == before)


def test_a_path_names_all_addresses_and_one_of_an_older_version_is_read() -> None:
    ends = SeveralEnds(TcpTransport)
    path = msgspec.msgpack.decode(ends.export(writable=True), type=TcpPath)
    assert [path.host, *(host for host, _ in path.others)] == [*HOSTS]
    older = msgspec.msgpack.encode([path.host, path.port, path.key])
    assert msgspec.msgpack.decode(older, type=TcpPath) == structs.replace(path, others=[])
    assert ends.transfer(Kind.WRITE, older, [memoryview(b"old")], 0) is None
    assert ends.memory[:3] == b"old"
    ends.close()


class Pair:
    """A target with two links, the second through a relay, and an initiator."""

    def __init__(self) -> None:
        self.target = self._engine("target", 2)
        self.memory = memoryview(bytearray(32 << 20))
        region = self.target.register_memory(self.memory)
        self.segment = self.target.export(region, writable=True)
        named = msgspec.msgpack.decode(self.segment.paths["tcp"], type=TcpPath)
        self.relay = Relay(*named.others[0])
        named = structs.replace(named, others=[("127.0.0.1", self.relay.port)])
        self.segment = structs.replace(self.segment, paths={"tcp": msgspec.msgpack.encode(named)})
        self.initiator = self._engine("initiator", 1)

    def write(self, content: bytes) -> list[Exception | None]:
        """All over the target's memory, cut into as many requests as there are MiB."""
        view, part = memoryview(content), 1 << 20
        moves = [([view[start : start + part]], start) for start in range(0, len(view), part)]
        return [moved.error for moved in self.initiator.move(Kind.WRITE, self.segment, moves, timeout_s=20)]

    def close(self) -> None:
        self.initiator.close()
        self.relay.close()
        self.target.close()

    def _engine(self, owner: str, incarnation: int) -> TransferEngine:
        hosts = {"listen_host": HOSTS[0], "further_hosts": HOSTS[1:]}
        return TransferEngine(owner=owner, host_id=owner, incarnation=incarnation, transports=["tcp"], **hosts)


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def random_content(pair: Pair) -> bytes:
    return random.Random(7).randbytes(pair.memory.nbytes)


def test_both_links_carry_a_large_batch(pair: Pair) -> None:
    pair.relay.to_target.hold(4096)
    content = random_content(pair)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(pair.write, content)
        wait_for(lambda: bytes(pair.memory[:1024]) == content[:1024] or bytes(pair.memory[-1024:]) == content[-1024:])
        assert not written.done()  # what goes through the relay is missing
        pair.relay.to_target.open()
        assert written.result() == [None] * 32
    assert pair.memory == content


def test_a_batch_whose_link_ends_goes_on_over_the_other(pair: Pair) -> None:
    content = random_content(pair)
    pair.relay.to_target.hold(3 << 20)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(pair.write, content)
        wait_for(lambda: pair.relay.to_target.is_used_up)
        pair.relay.cut()
        pair.relay.to_target.open()
        assert written.result() == [None] * 32
    assert pair.memory == content


def test_a_batch_whose_link_falls_silent_goes_on_over_the_other_and_nothing_lands_late(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "is_silent", lambda sock: sock.getpeername()[1] == pair.relay.port)
    content = random_content(pair)
    pair.relay.to_target.hold(3 << 20)
    assert pair.write(content) == [None] * 32
    assert pair.memory == content
    again = content[::-1]
    assert pair.write(again) == [None] * 32  # over the good one: the other is set aside
    pair.relay.to_target.open()
    time.sleep(0.1)
    assert pair.memory == again


def test_a_write_that_cannot_be_called_back_fails_at_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "is_silent", lambda sock: sock.getpeername()[1] == pair.relay.port)
    monkeypatch.setattr(links.Link, "_ask", lambda link, address, timeout_s: False)
    pair.relay.to_target.hold(3 << 20)
    errors = [str(error) for error in pair.write(random_content(pair)) if error is not None]
    assert errors
    assert all("could not be told over another link to forget" in error for error in errors)


def test_small_transfers_take_any_link_and_outlive_one(pair: Pair) -> None:
    for number in range(4):
        (moved,) = pair.initiator.move(Kind.WRITE, pair.segment, [([memoryview(bytes([number]) * 8)], 8 * number)])
        assert moved.error is None
    with ThreadPoolExecutor(4) as pool:
        for round_ in range(3):
            moves = [pool.submit(_write, pair, bytes([round_, number]), 2 * number) for number in range(64)]
            assert [moved.result() for moved in moves] == [None] * 64
            pair.relay.cut()
    assert bytes(pair.memory[:128]) == b"".join(bytes([2, number]) for number in range(64))


def _write(pair: Pair, content: bytes, offset: int) -> Exception | None:
    (moved,) = pair.initiator.move(Kind.WRITE, pair.segment, [([memoryview(content)], offset)])
    return moved.error


def test_a_connection_that_was_broken_off_before_it_was_named_never_serves() -> None:
    target = Target(["127.0.0.1"], 0, Exports(), None, PlainSockets(), PinnedBuffers())
    assert target.break_off(b"x" * 16)
    with socket.create_connection(target.addresses[0]) as late:
        handshake.introduce(late, None, "it")
        late.sendall(REQUEST.pack(NAME, 0, 0, b"x" * 16, 0.0, 0, 0))
        assert late.recv(1) == b""
    target.close()


def test_the_kernel_says_when_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        assert not links.is_silent(sock)
    assert not links.is_silent(sock)  # it was closed meanwhile


def test_a_host_that_cannot_be_listened_on_is_named() -> None:
    settings = TransportSettings(owner="o", host_id="h", incarnation=1, further_hosts=["203.0.113.9"])
    with pytest.raises(PathFailed, match="cannot listen on 203.0.113.9"):
        TcpTransport(settings)
