"""What transfers went by, and what is counted of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mooncake_core.errors import PathFailed
from mooncake_core.testing.memory_transport import Hub
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.lanes import OTHERS, Carried, Lanes, Part, carried
from mooncake_core.transfer.slices import SLICE_BYTES

HOSTS = ("127.0.0.1", "127.0.0.2")


def test_a_report_adds_up_what_each_lane_carried() -> None:
    lanes = Lanes()
    one, other = lanes.get("tcp", "a", "b"), lanes.get("tcp", "c", "d")
    parts = [Part(one, 10, 1.5), Part(other, 20, 1.25), Part(one, 5, 3.0)]
    assert carried(parts, 1.0) == [Carried("tcp", "a", "b", 15, 2.0), Carried("tcp", "c", "d", 20, 0.25)]
    assert carried([], 1.0) == []


def test_lanes_are_found_again_and_too_many_are_counted_together() -> None:
    lanes = Lanes(most=2)
    first = lanes.get("tcp", "a", "b")
    assert lanes.get("tcp", "a", "b") is first
    lanes.get("tcp", "a", "c")
    further = lanes.get("tcp", "a", "d")
    assert (further.local, further.peer) == (OTHERS, OTHERS)
    assert lanes.get("tcp", "a", "e") is further
    assert lanes.get("tcp", "a", "b") is first
    assert [str(lane) for lane in lanes.all()] == ["tcp a to b", "tcp a to c", "tcp others to others"]


class Two:
    """An engine, and another on whose memory it acts."""

    def __init__(
        self, *transports: object, far_hosts: tuple[str, ...] = (), weights: dict[str, float] | None = None
    ) -> None:
        with ExitStack() as made:
            self.near = self._engine("near", 1, transports, (), weights)
            made.callback(self.near.close)
            self.far = self._engine("far", 2, transports, far_hosts, None)
            made.pop_all()
        self.memory = memoryview(bytearray(8 * SLICE_BYTES))
        self.segment = self.far.export(self.far.register_memory(self.memory), writable=True)

    def close(self) -> None:
        self.near.close()
        self.far.close()

    def _engine(
        self,
        owner: str,
        number: int,
        transports: tuple[object, ...],
        further: tuple[str, ...],
        weights: dict[str, float] | None,
    ) -> TransferEngine:
        return TransferEngine(
            owner=owner,
            host_id=owner,
            incarnation=number,
            transports=list(transports),  # type: ignore[arg-type]
            further_hosts=further,
            weights=weights,
        )


@pytest.fixture
def over_two_links() -> Iterator[Two]:
    two = Two("tcp", far_hosts=HOSTS[1:])
    yield two
    two.close()


def test_a_large_transfer_reports_each_link(over_two_links: Two) -> None:
    block = bytes(over_two_links.memory.nbytes)
    (moved,) = over_two_links.near.move(Kind.WRITE, over_two_links.segment, [([memoryview(block)], 0)])
    assert moved.error is None
    report = {one.peer: one for one in moved.carried()}
    assert sorted(report) == [*HOSTS]
    assert sum(one.num_bytes for one in report.values()) == len(block)
    assert all(one.transport == "tcp" and one.local.startswith("127.") and one.seconds > 0 for one in report.values())
    counted = {lane.peer: lane.num_bytes for lane in over_two_links.near.lanes()}
    assert counted == {one.peer: one.num_bytes for one in report.values()}


def test_a_small_transfer_reports_what_carried_it(over_two_links: Two) -> None:
    (moved,) = over_two_links.near.move(Kind.WRITE, over_two_links.segment, [([memoryview(b"hello")], 0)])
    (one,) = moved.carried()
    assert (one.transport, one.num_bytes) == ("tcp", 5)
    assert one.peer in HOSTS


def test_what_failed_is_counted_and_the_report_names_what_carried_it_then() -> None:
    hub = Hub()
    two = Two(hub.transport(), "tcp")
    hub.failing.add("far")
    (moved,) = two.near.move(Kind.WRITE, two.segment, [([memoryview(b"hello")], 0)])
    assert [(one.transport, one.num_bytes) for one in moved.carried()] == [("tcp", 5)]
    counted = {lane.transport: (lane.num_operations, lane.num_failures) for lane in two.near.lanes()}
    assert counted == {"memory": (0, 1), "tcp": (1, 0)}
    two.close()


def test_a_peer_that_is_not_there_is_a_lane_that_fails() -> None:
    two = Two("tcp")
    two.far.close()
    (moved,) = two.near.move(Kind.WRITE, two.segment, [([memoryview(b"hello")], 0)])
    assert isinstance(moved.error, PathFailed)
    assert moved.carried() == []
    (lane,) = two.near.lanes()
    assert (lane.transport, lane.local, lane.peer) == ("tcp", "", HOSTS[0])
    assert lane.num_failures
    two.close()


@pytest.mark.parametrize("num_bytes", [8 * SLICE_BYTES, 1000])
def test_a_banned_network_carries_nothing(num_bytes: int) -> None:
    two = Two("tcp", far_hosts=HOSTS[1:], weights={"127.0.0.1/32": 0})
    (moved,) = two.near.move(Kind.WRITE, two.segment, [([memoryview(bytes(num_bytes))], 0)])
    assert [(one.peer, one.num_bytes) for one in moved.carried()] == [(HOSTS[1], num_bytes)]
    two.close()


def test_slices_go_by_weight() -> None:
    two = Two("tcp", far_hosts=HOSTS[1:], weights={"127.0.0.2/32": 3})
    (moved,) = two.near.move(Kind.WRITE, two.segment, [([memoryview(bytes(two.memory.nbytes))], 0)])
    shares = {one.peer: one.num_bytes // SLICE_BYTES for one in moved.carried()}
    assert shares == {HOSTS[0]: 2, HOSTS[1]: 6}
    two.close()


def test_where_all_networks_are_banned_the_error_says_so() -> None:
    two = Two("tcp", far_hosts=HOSTS[1:], weights={"127.0.0.0/8": 0})
    (moved,) = two.near.move(Kind.WRITE, two.segment, [([memoryview(b"hello")], 0)])
    assert isinstance(moved.error, PathFailed)
    assert "127.0.0.1, 127.0.0.2 over tcp: transfer.weights bans each network" in str(moved.error)
    two.close()
