"""Connections to many peers: those that are not used make room for others."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import msgspec
import pytest

from mooncake_core.testing.cluster import wait_for
from mooncake_core.testing.relay import Relay
from mooncake_core.testing.transport_contract import Ends
from mooncake_core.transfer.contract import Kind, Transport
from mooncake_tcp import TcpTransport, exchanges, transport
from mooncake_tcp.transport import TcpPath

MOST = 3
PEERS = 8


class Peers:
    """Several targets of one initiator, each with a byte of its own."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.targets: list[Transport] = []
        self.paths: list[bytes] = []
        for number in range(PEERS):
            target = ends.make(f"target {number}", 10 + number)
            path = target.export(target.register(memoryview(bytearray([number]))), writable=True)
            assert path is not None
            self.targets.append(target)
            self.paths.append(path)

    def read(self, path: bytes) -> int:
        sink = bytearray(1)
        assert self.ends.transfer(Kind.READ, path, [memoryview(sink)], 0) is None
        return sink[0]

    def close(self) -> None:
        for target in self.targets:
            target.close()


@pytest.fixture
def peers(moves: bool) -> Iterator[Peers]:
    ends = Ends(TcpTransport, moves=moves)
    peers = Peers(ends)
    yield peers
    peers.close()
    ends.close()


def num_threads() -> int:
    """Of connections to peers, with those that are ending."""
    return sum(thread.name.startswith("tcp-to-") for thread in threading.enumerate())


@pytest.mark.parametrize("moves", [False])
def test_threads_are_kept_for_some_peers_only(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MOST_PEERS", MOST)
    for _ in range(3):
        assert [peers.read(path) for path in peers.paths] == [*range(PEERS)]
    wait_for(lambda: num_threads() <= MOST)


@pytest.mark.parametrize("moves", [False])
def test_a_peer_that_has_something_under_way_keeps_its_connection(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MOST_PEERS", 1)
    direct = msgspec.msgpack.decode(peers.paths[0], type=TcpPath)
    relay = Relay(direct.host, direct.port)
    relay.to_target.hold()
    slow = msgspec.msgpack.encode(TcpPath("127.0.0.1", relay.port, direct.key))
    sink = bytearray(b"x")
    operation = peers.ends.operation(Kind.READ, slow, [memoryview(sink)], 0)
    peers.ends.initiator.post([operation])
    assert [peers.read(path) for path in peers.paths[1:]] == [*range(1, PEERS)]
    assert sink == b"x"
    relay.to_target.open()
    assert peers.ends.collect(1) == {operation.operation_id: None}
    assert sink == b"\0"
    relay.close()


@pytest.mark.parametrize("moves", [True])
def test_exchanges_are_kept_for_some_peers_only(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "MOST", MOST)
    lent: exchanges.Exchanges = peers.ends.initiator._exchanges  # type: ignore[attr-defined]
    for _ in range(3):
        assert [peers.read(path) for path in peers.paths] == [*range(PEERS)]
        assert sum(len(idle) for idle in lent._idle.values()) == len(lent._sieve) == MOST
    assert len(lent._idle) <= MOST
