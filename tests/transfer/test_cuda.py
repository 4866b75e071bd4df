"""NVIDIA's driver: the calls made of it, by a stand-in for its library; and the real one, where there is a GPU."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from mooncake_core.errors import TransferError
from mooncake_core.testing.device_memory import StandInDevice
from mooncake_core.transfer import Endpoint, Kind, Span, cuda, device_memory
from mooncake_core.transfer.addresses import address_of
from mooncake_core.transfer.cuda import CudaDriver, find_cuda
from mooncake_core.transfer.device import Copy

MIB = 1 << 20
INVALID_VALUE = 1
CONTEXT = 0x1000
PCI_ADDRESS = b"0000:1B:00.0"


class Library:
    """libcuda with two GPUs, of which the process uses the second: one whose memory is a stand-in's."""

    def __init__(self, gpu: StandInDevice) -> None:
        self.gpu = gpu
        self.calls: Counter[str] = Counter()
        self.contexts: list[int] = []
        self.streams: list[int] = []
        self.unfinished: Counter[int] = Counter()
        self.wants_context = False
        self.failing: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        carry_out = getattr(type(self), f"_{name}")

        def call(*arguments: Any) -> int:
            self.calls[name] += 1
            code: int = self.failing.get(name) or carry_out(self, *arguments) or 0
            return code

        return call

    def _cuInit(self, flags: int) -> None:  # noqa: N802
        assert flags == 0

    def _cuGetErrorName(self, code: int, text: Any) -> None:  # noqa: N802
        text._obj.value = {1: b"CUDA_ERROR_INVALID_VALUE", 3: b"CUDA_ERROR_NOT_INITIALIZED"}.get(
            code, b"CUDA_ERROR_UNKNOWN"
        )

    def _cuGetErrorString(self, code: int, text: Any) -> None:  # noqa: N802
        text._obj.value = b"something is wrong"

    def _cuDeviceGetCount(self, count: Any) -> None:  # noqa: N802
        count._obj.value = 2

    def _cuDeviceGet(self, device: Any, ordinal: int) -> None:  # noqa: N802
        device._obj.value = ordinal

    def _cuDeviceGetPCIBusId(self, text: Any, length: int, device: int) -> None:  # noqa: N802
        assert (length, device) == (32, 1)
        text.value = PCI_ADDRESS

    def _cuDevicePrimaryCtxGetState(self, device: int, flags: Any, active: Any) -> None:  # noqa: N802
        active._obj.value = device == 1

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> None:  # noqa: N802
        assert device == 1, "a context on a GPU that the process does not use"
        context._obj.value = CONTEXT

    def _cuCtxPushCurrent_v2(self, context: int) -> None:  # noqa: N802
        assert context == CONTEXT
        self.contexts.append(context)

    def _cuCtxPopCurrent_v2(self, context: Any) -> None:  # noqa: N802
        context._obj.value = self.contexts.pop()

    def _cuPointerGetAttribute(self, value: Any, attribute: int, address: int) -> int:  # noqa: N802
        if self.wants_context and not self.contexts:
            return cuda.INVALID_CONTEXT
        if not self.gpu.holds(address):
            return INVALID_VALUE
        value._obj.value = {cuda.POINTER_MEMORY_TYPE: 2, cuda.POINTER_DEVICE_ORDINAL: 1}[attribute]
        return 0

    def _cuStreamCreate(self, stream: Any, flags: int) -> None:  # noqa: N802
        assert flags == cuda.NON_BLOCKING_STREAM
        assert self.contexts
        stream._obj.value = 0x5000 + len(self.streams)
        self.streams.append(stream._obj.value)

    def _cuStreamSynchronize(self, stream: int) -> None:  # noqa: N802
        assert stream in self.streams
        self.unfinished[stream] = 0

    def _cuMemcpyAsync(self, target: int, source: int, num_bytes: int, stream: int) -> None:  # noqa: N802
        assert stream in self.streams
        assert self.contexts
        self.unfinished[stream] += 1
        self.gpu.copy([Copy(target, source, num_bytes)])

    def _cuMemHostRegister_v2(self, address: int, num_bytes: int, flags: int) -> None:  # noqa: N802
        assert flags == cuda.REGISTER_PORTABLE
        self.gpu.pin(address, num_bytes)

    def _cuMemHostUnregister(self, address: int) -> None:  # noqa: N802
        self.gpu.unpin(address)

    def _cuMemGetHandleForAddressRange(  # noqa: N802
        self, handle: Any, address: int, num_bytes: int, kind: int, flags: int
    ) -> None:
        assert kind == cuda.DMA_BUF_HANDLE
        assert address % mmap.PAGESIZE == num_bytes % mmap.PAGESIZE == flags == 0
        handle._obj.value = os.memfd_create("dma-buf")


@pytest.fixture
def library() -> Iterator[Library]:
    gpu = StandInDevice(MIB)
    yield Library(gpu)
    gpu.close()


def test_whose_memory_it_is(library: Library) -> None:
    driver = CudaDriver(library)
    device = driver.device_at(library.gpu.address + 5)
    assert device is not None
    assert (device.name, device.pci_address) == ("cuda:1", "0000:1b:00.0")
    assert driver.device_at(library.gpu.address + MIB - 1) is device
    assert driver.device_at(library.gpu.address + MIB) is None


def test_a_driver_that_wants_a_context_gets_one_of_a_gpu_in_use(library: Library) -> None:
    library.wants_context = True
    driver = CudaDriver(library)
    assert driver.device_at(library.gpu.address) is not None
    assert library.contexts == []


def test_copies_have_ended_when_they_return_and_streams_are_used_again(library: Library) -> None:
    device = CudaDriver(library).device_at(library.gpu.address)
    assert device is not None
    memory = memoryview(bytearray(os.urandom(1000)))
    start = address_of(memory)
    device.copy([Copy(library.gpu.address, start, 600), Copy(library.gpu.address + 600, start + 600, 400)])
    assert library.gpu.content[:1000] == memory
    device.copy([Copy(start, library.gpu.address + 500, 500)])
    assert memory[:500] == library.gpu.content[500:1000]
    assert (library.calls["cuStreamCreate"], library.contexts) == (1, [])
    assert not library.unfinished.total()


def test_a_refused_copy_is_said_and_nothing_goes_on(library: Library) -> None:
    device = CudaDriver(library).device_at(library.gpu.address)
    assert device is not None
    library.failing["cuMemcpyAsync"] = INVALID_VALUE
    with pytest.raises(
        TransferError, match=r"cuMemcpyAsync: CUDA_ERROR_INVALID_VALUE, something is wrong \(not all of it"
    ):
        device.copy([Copy(library.gpu.address, 4096, 1)])
    assert library.calls["cuStreamSynchronize"] == 1
    assert library.contexts == []
    library.failing = {"cuStreamSynchronize": 700}
    with pytest.raises(TransferError, match="cuStreamSynchronize: CUDA_ERROR_UNKNOWN"):
        device.copy([])


def test_memory_of_the_host_is_pinned_for_all_contexts(library: Library) -> None:
    device = CudaDriver(library).device_at(library.gpu.address)
    assert device is not None
    device.pin(4096, 100)
    assert library.gpu.pinned == {4096: 100}
    device.unpin(4096)
    assert library.gpu.pinned == {}


def test_a_dma_buf_is_of_whole_pages(library: Library) -> None:
    device = CudaDriver(library).device_at(library.gpu.address)
    assert device is not None
    buffer = device.dma_buf(library.gpu.address + 4096 + 10, 4096)
    os.close(buffer.descriptor)
    assert buffer.offset == 10


def test_a_driver_of_before_dma_buf(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Library, "_cuMemGetHandleForAddressRange")
    device = CudaDriver(library).device_at(library.gpu.address)
    assert device is not None
    with pytest.raises(TransferError, match="too old: it has no cuMemGetHandleForAddressRange"):
        device.dma_buf(library.gpu.address, 1)


def test_a_driver_that_finds_no_gpu_is_none(
    library: Library, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library.failing["cuInit"] = 3
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name, mode: library)
    assert find_cuda() is None
    assert "cannot be moved: NVIDIA's driver: cuInit: CUDA_ERROR_NOT_INITIALIZED" in caplog.text
    assert "start it by `spawn`" in caplog.text


def test_a_machine_without_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-that-is-not-here.so.1")
    assert find_cuda() is None


@pytest.fixture(scope="module")
def torch() -> Any:
    """torch, where it finds a GPU."""
    found = pytest.importorskip("torch")
    if not found.cuda.is_available():
        pytest.skip("torch finds no GPU here")
    return found


@pytest.mark.model
class TestRealGpu:
    """Bytes that kernels of torch wrote, and that they compare."""

    @pytest.fixture(autouse=True)
    def _fresh(self) -> None:
        device_memory.find_driver.cache_clear()

    @pytest.mark.parametrize("num_bytes", [1, 4097, 40 * MIB])
    def test_tensors_go_from_gpu_to_gpu_and_to_the_host(self, torch: Any, num_bytes: int) -> None:
        sent = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device="cuda")
        there_tensor, back = torch.zeros_like(sent), torch.zeros_like(sent)
        torch.cuda.synchronize()
        with Endpoint(transports=["tcp"]) as here, Endpoint(transports=["tcp"]) as there:
            address = there.register_memory(there_tensor)
            peer = here.open(there.name)
            assert here.write(peer, sent, address).path == "tcp"
            assert torch.equal(there_tensor, sent)
            here.read(peer, back, address)
            assert torch.equal(back, sent)
            host = bytearray(num_bytes)
            here.read(peer, host, address)
            assert host == bytes(sent.cpu().numpy())
            here.write(peer, bytes(num_bytes), address)
            assert not there_tensor.any()

    def test_raw_addresses_in_a_batch(self, torch: Any) -> None:
        cache = torch.arange(1 << 20, dtype=torch.int64, device="cuda")
        sink = torch.zeros_like(cache)
        torch.cuda.synchronize()
        with Endpoint(transports=["tcp"]) as here, Endpoint(transports=["tcp"]) as there:
            start = there.register_memory(Span(sink.data_ptr(), sink.numel() * 8))
            near = [cache.data_ptr() + 8192 * block for block in range(1024)]
            peer = here.open(there.name)
            here.move(
                Kind.WRITE, peer, here.views(near, [8192] * 1024), [start + 8192 * (1023 - at) for at in range(1024)]
            )
            assert torch.equal(sink.view(1024, -1).flip(0).flatten(), cache)

    def test_threads_without_a_context(self, torch: Any) -> None:
        tensor = torch.arange(1000, dtype=torch.int32, device="cuda")
        torch.cuda.synchronize()
        view = device_memory.device_view(tensor.data_ptr(), 4000)
        assert view is not None
        found: list[bytes] = []
        threads = [threading.Thread(target=lambda: found.append(device_memory.content_of(view))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [bytes(tensor.cpu().numpy())] * 8

    def test_what_is_no_memory_of_a_gpu(self, torch: Any) -> None:
        tensor = torch.zeros(10, device="cuda")
        assert device_memory.device_view(tensor.data_ptr(), 1 << 45) is None
        assert device_memory.device_view(4096, 10) is None
        device = device_memory.device_of(device_memory.device_view(tensor.data_ptr(), 40) or memoryview(b""))
        assert device is not None
        assert device.name == "cuda:0"
        with pytest.raises(TransferError, match="cuMemcpyAsync"):
            device.copy([Copy(tensor.data_ptr(), 4096, 10)])

    def test_a_process_that_moves_nothing_of_it_loads_no_driver(self, torch: Any) -> None:
        code = "import mooncake_core.transfer; print('libcuda' in open('/proc/self/maps').read())"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"

    def test_dma_buf_or_a_reason(self, torch: Any) -> None:
        tensor = torch.zeros(4 * MIB, dtype=torch.uint8, device="cuda")
        device = device_memory.device_of(device_memory.device_view(tensor.data_ptr(), 100) or memoryview(b""))
        assert device is not None
        try:
            buffer = device.dma_buf(tensor.data_ptr() + 10, 100)
        except TransferError as error:
            assert "cuMemGetHandleForAddressRange" in str(error)  # noqa: PT017
        else:
            os.close(buffer.descriptor)
            assert buffer.offset == 10
