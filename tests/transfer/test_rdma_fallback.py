"""The rdma transport beside tcp, in a Transfer Engine: what its rails cannot carry goes over tcp."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest

from mooncake_core.errors import TransferError
from mooncake_core.transfer import Endpoint
from mooncake_core.transfer.contract import Kind, Transport
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_rdma import initiator, peers
from mooncake_rdma.transport import RdmaTransport
from mooncake_tcp import TcpTransport
from tests.transfer import rdma_fabric
from tests.transfer.rdma_fabric import Network, transport_on

PART_BYTES = 64 << 10
COUNT = 5


class Pair:
    """Two engines with both transports, and a segment of one of them."""

    def __init__(self) -> None:
        self.network = Network()
        transports = [transport_on(self.network), "tcp"]
        self.here, self.there = (
            TransferEngine(owner=name, host_id=name, incarnation=number, transports=transports)
            for number, name in enumerate(("here", "there"), 1)
        )
        self.memory = bytearray(COUNT * PART_BYTES)
        self.segment: SegmentDescriptor = self.there.export(self.there.register_memory(self.memory), writable=True)

    def write(self) -> list[str]:
        """One after the other; by which transport each went."""
        source = os.urandom(len(self.memory))
        paths = []
        for start in range(0, len(source), PART_BYTES):
            piece = memoryview(source)[start : start + PART_BYTES]
            (moved,) = self.here.move(Kind.WRITE, self.segment, [([piece], start)])
            assert moved.error is None
            paths.append(moved.path)
        assert self.memory == source
        return paths

    def close(self) -> None:
        self.here.close()
        self.there.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def test_rails_that_failed_lately_are_not_tried_by_each_transfer(pair: Pair) -> None:
    pair.network.failing |= {"nic0", "nic1"}
    assert pair.write() == ["tcp"] * COUNT
    assert pair.network.num_failures == {"nic0": 1, "nic1": 1}


def test_rails_carry_again_once_their_time_is_over(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "FIRST_BACK_OFF_S", 0.2)
    pair.network.failing |= {"nic0", "nic1"}
    assert set(pair.write()) == {"tcp"}
    pair.network.failing.clear()
    time.sleep(0.3)
    assert set(pair.write()) == {"rdma"}


def test_a_rail_that_carries_again_for_a_while_is_as_good_as_before(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "FIRST_BACK_OFF_S", 0.2)
    pair.network.failing |= {"nic0", "nic1"}
    pair.write()
    pair.network.failing.clear()
    time.sleep(0.3)
    assert set(pair.write()) == {"rdma"}
    time.sleep(0.3)
    assert set(pair.write()) == {"rdma"}
    rdma = pair.here._paths["rdma"]
    assert isinstance(rdma, RdmaTransport)
    tracks = [track for peer in rdma._initiator._peers._peers.values() for track in peer.tracks.values()]
    assert [track.back_off_s for track in tracks if track.connection] == [0.0] * 2


def test_rails_are_tried_all_the_same_where_tcp_fails_too(pair: Pair) -> None:
    pair.network.failing |= {"nic0", "nic1"}
    assert set(pair.write()) == {"tcp"}
    pair.network.failing.clear()
    pair.there._paths["tcp"].close()
    assert pair.write() == ["rdma"] * COUNT


@pytest.mark.parametrize("stuck", [{"nic0"}, {"nic0", "nic1"}])
def test_what_stands_still_goes_elsewhere_long_before_its_deadline(
    pair: Pair, stuck: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initiator, "STALL_S", 0.5)
    monkeypatch.setattr(initiator, "WATCH_S", 0.02)
    pair.network.stuck |= stuck
    started = time.monotonic()
    assert set(pair.write()) == ({"tcp"} if len(stuck) == 2 else {"rdma"})
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("refused", ["register", "export"])
def test_memory_that_cannot_be_registered_is_forgotten_by_nics_too(
    monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    network = Network()
    register = rdma_fabric.Device.register

    def refuse(
        self: rdma_fabric.Device, address: int, num_bytes: int, *, is_remote: bool = False, writable: bool = False
    ) -> rdma_fabric.Region:
        if is_remote:
            raise TransferError("no memory can be pinned")
        return register(self, address, num_bytes, is_remote=is_remote, writable=writable)

    class Full(TcpTransport):
        name: ClassVar[str] = "full"

        def register(self, memory: memoryview, descriptor: int | None = None) -> int:
            raise TransferError("no memory can be pinned")

    others: list[type[Transport]] = [Full] if refused == "register" else []
    with Endpoint(transports=[transport_on(network), *others]) as here:
        if refused == "export":
            monkeypatch.setattr(rdma_fabric.Device, "register", refuse)
        with pytest.raises(TransferError, match="no memory can be pinned"):
            here.register_memory(bytearray(100))
        assert network.regions == {}
