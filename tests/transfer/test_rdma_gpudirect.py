"""Memory of GPUs over RDMA, by NICs and a GPU that are stand-ins: by address, by dma-buf, or through memory of the host."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mooncake_core.errors import TransferError
from mooncake_core.testing.device_memory import StandInDevice
from mooncake_core.testing.sysfs import write_tree
from mooncake_core.transfer import Endpoint, Kind, Span, device_memory
from mooncake_core.transfer.addresses import address_of
from mooncake_rdma.gpudirect import has_peer_memory
from mooncake_rdma.paths import RdmaPath
from tests.transfer.rdma_fabric import Network, transport_on
from tests.transfer.stand_in_gpu import found_gpu

pytestmark = pytest.mark.timeout(60)
MIB = 1 << 20
START = 4096 + 52
"""Within the GPU's memory, of what the target registers: on no border of a page."""
LENGTH = 20 * MIB
NEAR = 40 * MIB + 12


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInDevice]:
    with found_gpu(monkeypatch) as gpu:
        yield gpu


@pytest.fixture
def network(tmp_path: Path) -> Network:
    network = Network()
    network.sysfs = write_tree(tmp_path, {"module/nvidia_peermem/version": "560"})
    return network


class Ends:
    """Both have 20 MiB of the GPU's memory registered."""

    def __init__(self, gpu: StandInDevice, network: Network, others: Sequence[str] = ()) -> None:
        transports = [transport_on(network), *others]
        self.here, self.there = Endpoint(transports=transports), Endpoint(transports=transports)
        self.gpu = gpu
        self.far = self.there.register_memory(Span(gpu.address + START, LENGTH))
        self.near = self.here.register_memory(Span(gpu.address + NEAR, LENGTH))
        self.peer = self.here.open(self.there.name)

    def check(self, path: str = "rdma") -> None:
        """Moves bytes both ways, between GPU and GPU and between GPU and host."""
        draw = random.Random(3)
        near, far = (self.gpu.content[start : start + LENGTH] for start in (NEAR, START))
        for num_bytes in (1, 100, 200_000, 17 * MIB):
            ours, theirs = (draw.randrange(LENGTH - num_bytes) for _ in range(2))
            near[ours : ours + num_bytes] = sent = os.urandom(num_bytes)
            moved = self.here.write(self.peer, Span(self.near + ours, num_bytes), self.far + theirs)
            assert moved.path == path
            assert far[theirs : theirs + num_bytes] == sent
            near[ours : ours + num_bytes] = bytes(num_bytes)
            self.here.read(self.peer, Span(self.near + ours, num_bytes), self.far + theirs)
            assert near[ours : ours + num_bytes] == sent
            sink = bytearray(num_bytes)
            self.here.read(self.peer, sink, self.far + theirs)
            assert sink == sent
            self.here.write(self.peer, sent[::-1], self.far + theirs)
            assert far[theirs : theirs + num_bytes] == sent[::-1]

    def close(self) -> None:
        self.here.close()
        self.there.close()


@pytest.mark.parametrize("way", ["peermem", "dma-buf"])
def test_nics_reach_it_without_a_copy(gpu: StandInDevice, network: Network, way: str) -> None:
    network.gpu_ways = {way}
    ends = Ends(gpu, network)
    ends.check()
    assert gpu.num_copies == 0
    ends.close()
    assert network.regions == {}


@pytest.mark.parametrize("most_region_bytes", [1 << 40, 3 * MIB])
def test_peers_that_know_nothing_of_shifts_find_it_or_are_refused(
    gpu: StandInDevice, network: Network, most_region_bytes: int
) -> None:
    network.gpu_ways = {"dma-buf"}
    network.most_region_bytes = most_region_bytes
    ends = Ends(gpu, network)
    (memory,) = (entry for _, entry in ends.there._registered)
    path = memory.segment.paths["rdma"]
    known = msgspec.msgpack.decode(path, type=RdmaPath)
    fields = msgspec.msgpack.decode(path)[: RdmaPath.__struct_fields__.index("shifts")]
    before = msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=RdmaPath)  # as the version before reads it
    assert before.shifts == []
    for hull, start in enumerate(known.hull_starts):
        region = network.regions[known.keys[0][hull]]
        assert region.allows(known.remote_address(start, hull), 1, write=True)
        assert region.allows(before.remote_address(start, hull), 1, write=True) is (most_region_bytes > LENGTH)
    ends.close()


def test_regions_smaller_than_the_memory(gpu: StandInDevice, network: Network) -> None:
    network.gpu_ways = {"dma-buf"}
    network.most_region_bytes = 3 * MIB + 4
    ends = Ends(gpu, network)
    ends.check()
    assert gpu.num_copies == 0
    ends.close()


def test_several_exported_ranges_by_dma_buf(gpu: StandInDevice, network: Network) -> None:
    network.gpu_ways = {"dma-buf"}
    network.most_region_bytes = 2 * MIB
    ends = Ends(gpu, network)
    values = [os.urandom(3000) for _ in range(200)]
    addresses = [ends.far + 90_000 * number for number in range(200)]
    ends.here.move(Kind.WRITE, ends.peer, [memoryview(value) for value in values], addresses)
    for value, address in zip(values, addresses, strict=True):
        start = address - gpu.address
        assert gpu.content[start : start + 3000] == value
    ends.close()


def test_where_nics_do_not_reach_it_tcp_does_and_the_log_says_what_to_do_once(
    gpu: StandInDevice, network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    network.gpu_ways = set()
    ends = Ends(gpu, network, ["tcp"])
    ends.check("tcp")
    said = [record.message for record in caplog.records if "NICs do not reach memory of cuda:0" in record.message]
    assert len(said) == 2  # of two transports
    assert "nvidia-peermem: nic0/1 does not take peermem; dma-buf: nic0/1 does not take dma-buf" in said[0]
    assert "modprobe nvidia-peermem" in said[0]
    ends.close()
    assert network.regions == {}


def test_the_module_is_not_loaded_and_the_driver_has_no_dma_buf(
    gpu: StandInDevice, network: Network, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network.sysfs = tmp_path / "other"
    gpu.has_dma_buf = False
    ends = Ends(gpu, network, ["tcp"])
    ends.check("tcp")
    assert "nvidia-peermem is not loaded; dma-buf: cuda:0: the driver has no dma-buf" in caplog.text
    ends.close()


def test_rdma_carries_it_from_the_initiator_through_pinned_memory(gpu: StandInDevice, network: Network) -> None:
    network.gpu_ways = set()
    with Endpoint(transports=[transport_on(network)]) as here, Endpoint(transports=[transport_on(network)]) as there:
        here.register_memory(Span(gpu.address, 30 * MIB))
        memory = there.allocate_memory(30 * MIB)
        peer = here.open(there.name)
        address = address_of(memory.view)
        assert here.write(peer, Span(gpu.address, 30 * MIB), address).path == "rdma"
        assert memory.view == gpu.content[: 30 * MIB]
        here.read(peer, Span(gpu.address + 50 * MIB, 30 * MIB), address)
        assert gpu.content[50 * MIB : 80 * MIB] == memory.view


def test_memory_that_was_not_registered_goes_through_pinned_memory(gpu: StandInDevice, network: Network) -> None:
    ends = Ends(gpu, network)
    ends.here.unregister_memory(ends.near)
    assert ends.here.write(ends.peer, Span(ends.near, 5 * MIB), ends.far).path == "rdma"
    assert gpu.content[START : START + 5 * MIB] == gpu.content[NEAR : NEAR + 5 * MIB]
    assert gpu.num_copies > 0
    across = Span(ends.far + LENGTH - 100, 200)  # of which the NICs at the other end know a half
    back = ends.there.open(ends.here.name)
    memory = ends.here.allocate_memory(200)
    ends.there.write(back, bytes(200), address_of(memory.view))
    with pytest.raises(TransferError, match="go beyond what was registered"):
        ends.there.write(back, across, address_of(memory.view))
    ends.close()


def test_which_pieces_nics_reach(gpu: StandInDevice, network: Network) -> None:
    ends = Ends(gpu, network)
    transport = next(one for one in ends.here._engine._paths if one.name == "rdma")
    piece = device_memory.device_view(gpu.address + 90 * MIB, 50)
    assert piece is not None
    assert not transport.reaches_devices_of([piece])
    known = device_memory.device_view(ends.near, LENGTH)
    assert known is not None
    assert transport.reaches_devices_of([known, memoryview(b"host")])
    assert not transport.reaches_devices_of([known, piece])
    ends.close()


def test_the_cpu_copies_none_of_it_that_was_unregistered_meanwhile(
    gpu: StandInDevice, network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    ends = Ends(gpu, network)
    transport: Any = next(one for one in ends.here._engine._paths if one.name == "rdma")
    ends.here.write(ends.peer, Span(ends.near, 50), ends.far)
    before = [room._left for room in transport._initiator._rooms]
    monkey = pytest.MonkeyPatch()
    monkey.setattr(type(transport), "reaches_devices_of", lambda *_: True)
    ends.here.unregister_memory(ends.near)
    for num_bytes in (50, 5 * MIB):
        with pytest.raises(TransferError, match="memory of a GPU among the pieces was unregistered meanwhile"):
            ends.here.write(ends.peer, Span(ends.near, num_bytes), ends.far)
    monkey.undo()
    assert [room._left for room in transport._initiator._rooms] == before
    assert "set aside" not in caplog.text  # nothing is wrong with the NICs
    ends.close()


def test_a_withdrawn_export_is_not_written_any_more(gpu: StandInDevice, network: Network) -> None:
    ends = Ends(gpu, network)
    ends.check()
    ends.there.unregister_memory(ends.far)
    before = bytes(gpu.content[START : START + LENGTH])
    with pytest.raises(TransferError):
        ends.here.write(ends.peer, Span(ends.near, 5 * MIB), ends.far)
    assert gpu.content[START : START + LENGTH] == before
    ends.close()


@pytest.mark.parametrize(
    ("files", "is_there"),
    [
        ({}, False),
        ({"module/nvidia/version": "560"}, False),
        ({"module/nvidia_peermem/version": "560"}, True),
        ({"kernel/mm/memory_peers/nv_mem/version": "1.3"}, True),
        ({"kernel/mm/memory_peers/amdkfd/version": "1"}, False),
    ],
)
def test_which_modules_let_nics_reach_gpus(tmp_path: Path, files: dict[str, str], is_there: bool) -> None:
    assert has_peer_memory(write_tree(tmp_path, files)) is is_there
