"""The rdma transport over devices of no hardware: the contract, and what it does when rails fail."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from mooncake_core.errors import DeadlineExceeded, PathFailed, StaleSegment
from mooncake_core.testing.cluster import wait_for
from mooncake_core.testing.transport_contract import Ends, TransportContract
from mooncake_core.transfer.addresses import address_of
from mooncake_core.transfer.contract import Kind, Operation, Transport, TransportSettings
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.transfer.topology import Priority, location_of
from mooncake_core.transfer.weights import Weights
from mooncake_rdma import initiator, peers, staging
from mooncake_rdma.connection import UNSIGNALLED
from mooncake_rdma.messages import MESSAGE_BYTES, STAGED_BYTES
from mooncake_rdma.paths import RdmaPath
from tests.transfer.rdma_fabric import Network, transport_on
from tests.transfer.scarce_threads import room_for

PART_BYTES = 4096


class TestRdmaWithoutHardware(TransportContract):
    transport = transport_on(Network())


class TestRdmaOfSmallRegions(TransportContract):
    """All memory is registered, and exported, in parts."""

    network = Network()
    network.most_region_bytes = STAGED_BYTES
    transport = transport_on(network)

    @pytest.fixture(autouse=True)
    def small_staging(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(staging, "SLOTS", 1)


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def ends(network: Network) -> Iterator[Ends]:
    ends = Ends(transport_on(network))
    yield ends
    ends.close()


def _writes(ends: Ends, path: bytes, count: int = 16, timeout_s: float = 20.0) -> tuple[list[Operation], bytes]:
    source = os.urandom(count * PART_BYTES)
    pieces = [memoryview(source)[start : start + PART_BYTES] for start in range(0, len(source), PART_BYTES)]
    return [
        ends.operation(Kind.WRITE, path, [piece], number * PART_BYTES, timeout_s) for number, piece in enumerate(pieces)
    ], source


def test_both_rails_carry(ends: Ends, network: Network) -> None:
    operations, source = _writes(ends, ends.export(writable=True))
    assert set(ends.complete(operations).values()) == {None}
    assert ends.memory[: len(source)] == source
    assert network.num_requests == {"nic0": 8, "nic1": 8}


@pytest.mark.parametrize("fault", ["down", "failing"])
def test_a_batch_completes_on_the_other_rail(ends: Ends, network: Network, fault: str) -> None:
    operations, source = _writes(ends, ends.export(writable=True))
    network.moving.clear()
    ends.initiator.post(operations)
    getattr(network, fault).add("nic1")
    network.moving.set()
    assert set(ends.collect(len(operations)).values()) == {None}
    assert ends.memory[: len(source)] == source
    assert network.num_requests == {"nic0": 16}


def test_a_rail_that_stands_still_is_set_aside_though_its_link_is_up(
    ends: Ends, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initiator, "STALL_S", 0.05)
    monkeypatch.setattr(initiator, "WATCH_S", 0.02)
    network.stuck.add("nic1")
    operations, source = _writes(ends, ends.export(writable=True))
    assert set(ends.complete(operations).values()) == {None}
    assert ends.memory[: len(source)] == source


@pytest.mark.parametrize("method", ["wait_is_over", "completed"])
def test_a_device_that_cannot_be_heard_is_given_up_and_the_others_go_on(
    ends: Ends, network: Network, method: str
) -> None:
    path = ends.export(writable=True)
    network.moving.clear()
    operations, source = _writes(ends, path)
    ends.initiator.post(operations)
    network.mute[method].add("nic1")
    network.moving.set()
    assert set(ends.collect(len(operations)).values()) == {None}
    assert ends.memory[: len(source)] == source
    before = network.num_requests["nic1"]
    assert set(ends.complete(_writes(ends, path)[0]).values()) == {None}
    assert network.num_requests["nic1"] == before


def test_when_no_device_can_be_heard_the_error_names_device_and_errno_and_deadlines_hold(
    ends: Ends, network: Network
) -> None:
    path = ends.export(writable=True)
    network.mute["completed"] |= {"nic0", "nic1"}
    for _ in range(2):
        started = time.monotonic()
        for error in ends.complete(_writes(ends, path, timeout_s=2)[0]).values():
            assert isinstance(error, PathFailed)
            assert error.detail["errno"] == errno.ENODEV
            assert "device nic" in str(error)
        assert time.monotonic() - started < 2


def test_deadlines_hold_beside_a_device_that_cannot_be_heard(ends: Ends, network: Network) -> None:
    network.mute["completed"].add("nic1")
    network.stuck.add("nic0")
    errors = ends.complete(_writes(ends, ends.export(writable=True), timeout_s=0.5)[0])
    assert {type(error) for error in errors.values()} == {DeadlineExceeded}


@pytest.mark.parametrize("error", [PathFailed("takes no work", errno=errno.ENOMEM), OverflowError("too large")])
def test_what_a_device_does_not_take_goes_over_the_others(ends: Ends, network: Network, error: Exception) -> None:
    path = ends.export(writable=True)
    assert set(ends.complete(_writes(ends, path)[0]).values()) == {None}
    network.refusing["nic1"] = error
    operations, source = _writes(ends, path)
    assert set(ends.complete(operations).values()) == {None}
    assert ends.memory[: len(source)] == source


@contextmanager
def placed(network: Network, nics: Priority) -> Iterator[tuple[Ends, Callable[[], list[Operation]]]]:
    """Ends whose initiator has memory with such NICs, and what writes from there."""
    memory = SharedMemory("near", 16 * PART_BYTES)
    topology = {location_of(address_of(memory.view)): nics}
    ends = Ends(transport_on(network))
    ends.initiator.close()
    ends.initiator = transport_on(network)(
        TransportSettings(owner="near", host_id="h", incarnation=7, topology=topology)
    )
    ends.initiator.register(memory.view)
    path = ends.export(writable=True)

    def write() -> list[Operation]:
        return [
            ends.operation(Kind.WRITE, path, [memory.view[start : start + PART_BYTES]], start)
            for start in range(0, 16 * PART_BYTES, PART_BYTES)
        ]

    yield ends, write
    ends.close()
    memory.close()


def test_nics_near_the_memory_carry_it_while_they_can(network: Network) -> None:
    with placed(network, Priority(["nic1"], ["nic0"])) as (ends, write):
        assert set(ends.complete(write()).values()) == {None}
        assert network.num_requests == {"nic1": 16}
        network.failing.add("nic1")
        assert set(ends.complete(write()).values()) == {None}
        assert network.num_requests == {"nic0": 16, "nic1": 16}


def test_nics_that_are_not_named_for_a_memory_do_not_carry_it(network: Network) -> None:
    with placed(network, Priority(["nic1"], [])) as (ends, write):
        network.failing.add("nic1")
        assert {type(error) for error in ends.complete(write()).values()} == {PathFailed}
        assert "nic0" not in network.num_requests


def weighed(network: Network, weights: dict[str, float]) -> Ends:
    """An initiator that has them."""
    ends = Ends(transport_on(network))
    ends.initiator.close()
    settings = TransportSettings(owner="weighed", host_id="h", incarnation=7, weights=Weights(weights))
    ends.initiator = transport_on(network)(settings)
    return ends


def test_rails_carry_by_the_weights_of_their_devices(network: Network) -> None:
    ends = weighed(network, {"nic0": 3})
    assert set(ends.complete(_writes(ends, ends.export(writable=True))[0]).values()) == {None}
    assert network.num_requests == {"nic0": 12, "nic1": 4}
    ends.close()


def test_a_rail_to_a_banned_network_carries_nothing(network: Network) -> None:
    ends = weighed(network, {"10.0.1.0/24": 0})
    assert set(ends.complete(_writes(ends, ends.export(writable=True))[0]).values()) == {None}
    assert network.num_requests == {"nic0": 16}
    ends.close()


def test_where_all_is_banned_there_is_no_path(network: Network) -> None:
    ends = weighed(network, {"nic0": 0, "nic1": 0})
    (error,) = ends.complete(_writes(ends, ends.export(writable=True), count=1)[0]).values()
    assert isinstance(error, PathFailed)
    assert "no fabric in common that transfer.weights allows" in str(error)
    ends.close()


def test_a_rail_that_failed_is_left_alone_for_a_while_then_used_again(
    ends: Ends, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "FIRST_BACK_OFF_S", 0.2)
    path = ends.export(writable=True)
    network.failing.add("nic1")
    assert set(ends.complete(_writes(ends, path)[0]).values()) == {None}
    network.failing.clear()
    assert set(ends.complete(_writes(ends, path)[0]).values()) == {None}
    assert "nic1" not in network.num_requests

    def is_used_again() -> bool:
        assert set(ends.complete(_writes(ends, path)[0]).values()) == {None}
        return "nic1" in network.num_requests

    wait_for(is_used_again)


def test_where_there_is_no_other_transport_rails_are_tried_though_all_failed_lately(
    ends: Ends, network: Network
) -> None:
    path = ends.export(writable=True)
    network.failing |= {"nic0", "nic1"}
    assert {type(error) for error in ends.complete(_writes(ends, path)[0]).values()} == {PathFailed}
    network.failing.clear()
    assert set(ends.complete(_writes(ends, path)[0]).values()) == {None}


def test_when_all_rails_fail_the_error_says_who_how_and_errno(ends: Ends, network: Network) -> None:
    network.failing |= {"nic0", "nic1"}
    operations, _ = _writes(ends, ends.export(writable=True))
    for error in ends.complete(operations).values():
        assert isinstance(error, PathFailed)
        assert error.detail["errno"] > 0
        assert "127.0.0.1:" in str(error)
        assert "RETRY_EXC_ERR, the queue pair is in ERR" in str(error)


def test_what_is_late_is_left_alone_and_the_others_go_on(ends: Ends, network: Network) -> None:
    path = ends.export(writable=True)
    assert set(ends.complete(_writes(ends, path)[0]).values()) == {None}
    network.moving.clear()
    late, _ = _writes(ends, path, timeout_s=0.1)
    others, source = _writes(ends, path)
    ends.initiator.post([*late, *others])
    errors = ends.collect(len(late))
    assert errors.keys() == {operation.operation_id for operation in late}
    assert all(isinstance(error, DeadlineExceeded) for error in errors.values())
    network.moving.set()
    assert set(ends.collect(len(others)).values()) == {None}
    assert ends.memory[: len(source)] == source


def test_a_stale_key_fails_alone(ends: Ends) -> None:
    good = ends.export(writable=True)
    known = msgspec.msgpack.decode(good, type=RdmaPath)
    bad = msgspec.msgpack.encode(msgspec.structs.replace(known, export=99, keys=[[7], [7]]))
    operations, source = _writes(ends, good)
    stale, _ = _writes(ends, bad, count=4)
    errors = ends.complete([*operations[:8], *stale, *operations[8:]])
    assert {errors[operation.operation_id] for operation in operations} == {None}
    assert all(isinstance(errors[operation.operation_id], StaleSegment) for operation in stale)
    assert ends.memory[: len(source)] == source


def test_memory_is_registered_in_parts_where_devices_take_no_larger_ones(network: Network) -> None:
    network.most_region_bytes = 3 * PART_BYTES
    ends = Ends(transport_on(network))
    memory, _ = SharedMemory("here", 16 * PART_BYTES), ends.register(16 * PART_BYTES)
    handle = ends.initiator.register(memory.view)
    memory.view[:] = os.urandom(16 * PART_BYTES)
    path = ends.export(writable=True)
    assert ends.transfer(Kind.WRITE, path, [memory.view[5:]], 7) is None
    assert ends.memory[7 : 2 + 16 * PART_BYTES] == memory.view[5:]
    before = bytes(memory.view)
    memory.view[:] = bytes(16 * PART_BYTES)
    assert ends.transfer(Kind.READ, path, [memory.view[5:]], 7) is None
    assert memory.view[5:] == before[5:]
    ends.initiator.unregister(handle)
    ends.close()
    memory.close()


def test_initiators_hear_of_a_withdrawal_before_they_run_into_it(ends: Ends, network: Network) -> None:
    gone, kept = ends.export(writable=True), ends.export(writable=True)
    assert set(ends.complete(_writes(ends, kept)[0]).values()) == {None}
    ends.target.withdraw(gone)
    known = ends.initiator._initiator._peers._peers.values()  # type: ignore[attr-defined]
    wait_for(lambda: all(peer.withdrawn for peer in known))
    before = dict(network.num_requests)
    assert isinstance(ends.transfer(Kind.WRITE, gone, [memoryview(b"x")], 0), StaleSegment)
    assert network.num_requests == before


def test_threads_post_while_rails_fail(ends: Ends, network: Network) -> None:
    path = ends.export(writable=True)
    groups = [_writes(ends, path, count=40)[0] for _ in range(4)]
    threads = [threading.Thread(target=ends.initiator.post, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    network.failing.add("nic0")
    for thread in threads:
        thread.join()
    assert set(ends.collect(160).values()) == {None}


def test_of_many_requests_few_are_signalled(network: Network) -> None:
    ends = Ends(transport_on(network, ["nic0"]))
    num_bytes = 40 * MESSAGE_BYTES
    memory, (there, handle) = SharedMemory("here", num_bytes), ends.register(num_bytes)
    ends.initiator.register(memory.view)
    memory.view[:] = os.urandom(num_bytes)
    path = ends.target.export(handle, writable=True)
    assert path is not None
    assert ends.transfer(Kind.WRITE, path, [memory.view], 0) is None
    assert there == memory.view
    assert (network.num_requests, network.num_signalled) == ({"nic0": 40}, {"nic0": 40 // UNSIGNALLED + 1})
    ends.close()
    memory.close()


def test_what_goes_through_pinned_memory_is_signalled_for_its_room(network: Network) -> None:
    ends = Ends(transport_on(network, ["nic0"]))
    assert ends.transfer(Kind.WRITE, ends.export(writable=True), [memoryview(bytes(1 << 20))], 0) is None
    assert network.num_signalled == network.num_requests == {"nic0": (1 << 20) // STAGED_BYTES}
    ends.close()


def test_closing_leaves_no_memory_region_and_no_queue_pair(ends: Ends, network: Network) -> None:
    """Registered, exported, staged, under way, or broken."""
    ends.initiator.register(memoryview(bytearray(PART_BYTES)))
    path = ends.export(writable=True)
    network.failing.add("nic0")
    operations, _ = _writes(ends, path)
    assert set(ends.complete(operations).values()) == {None}
    network.failing.clear()
    network.moving.clear()
    operations, _ = _writes(ends, path)
    ends.initiator.post(operations)
    assert network.regions
    assert network.pairs
    ends.close()
    assert (network.regions, network.pairs) == ({}, set())


def test_a_transport_that_cannot_start_frees_what_it_made(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    refused = room_for(monkeypatch, 0, "rdma-completions")
    with pytest.raises(RuntimeError):
        Ends(transport_on(network))
    assert refused
    wait_for(lambda: (len(os.listdir("/proc/self/fd")), threading.active_count()) == before)


def _many_targets(ends: Ends, count: int) -> tuple[list[Transport], list[bytes]]:
    """Each has a connection of its own."""
    targets = [ends.make(f"target-{number}", 10 + number) for number in range(count)]
    paths = [target.export(target.register(ends.memory), writable=True) for target in targets]
    return targets, [path for path in paths if path is not None]


@pytest.mark.parametrize("most", [1, 8])
def test_no_more_is_under_way_than_the_queue_of_completions_takes(network: Network, most: int) -> None:
    network.most_requests = most
    ends = Ends(transport_on(network, ["nic0"]))
    targets, paths = _many_targets(ends, 6)
    operations = [operation for path in paths for operation in _writes(ends, path)[0]]
    network.moving.clear()
    ends.initiator.post(operations)
    opened = ends.initiator._initiator._all()  # type: ignore[attr-defined]
    wait_for(lambda: all(connection.queue_pair for connection in opened))
    network.moving.set()
    assert set(ends.collect(len(operations)).values()) == {None}
    assert network.most_under_way == most
    for target in targets:
        target.close()
    ends.close()


def test_what_a_broken_queue_pair_held_others_get(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    network.most_requests = 4
    ends = Ends(transport_on(network, ["nic0"]))
    targets, paths = _many_targets(ends, 2)
    network.moving.clear()
    late, _ = _writes(ends, paths[0], timeout_s=2)
    ends.initiator.post(late)
    (first,) = ends.initiator._initiator._all()  # type: ignore[attr-defined]
    wait_for(lambda: network.most_under_way == 4)
    others, _ = _writes(ends, paths[1])
    ends.initiator.post(others)
    assert {type(error) for error in ends.collect(len(late)).values()} == {DeadlineExceeded}
    assert first.broken
    network.moving.set()
    assert set(ends.collect(len(others)).values()) == {None}
    for target in targets:
        target.close()
    ends.close()


def test_idle_connections_make_room_for_others(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initiator, "MOST_CONNECTIONS", 2)
    ends = Ends(transport_on(network, ["nic0"]))
    targets = [ends.make(f"target-{number}", 10 + number) for number in range(4)]
    memory = SharedMemory("targets", 4 * PART_BYTES)
    paths = []
    for number, target in enumerate(targets):
        part = memory.view[number * PART_BYTES : (number + 1) * PART_BYTES]
        paths.append(target.export(target.register(part), writable=True))
    for _ in range(3):
        for number, path in enumerate(paths):
            assert path is not None
            content = os.urandom(PART_BYTES)
            assert ends.transfer(Kind.WRITE, path, [memoryview(content)], 0) is None
            assert memory.view[number * PART_BYTES : (number + 1) * PART_BYTES] == content
    wait_for(lambda: len(ends.initiator._initiator._all()) <= 2)  # type: ignore[attr-defined]
    for target in targets:
        target.close()
    ends.close()
    memory.close()
