"""NVIDIA's driver (libcuda), called without a package in between: it is there wherever a GPU can be used, its functions are
stable, and each call leaves the interpreter to others."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any, Final

from mooncake_core.errors import TransferError
from mooncake_core.transfer.device import Copy, Device, DmaBuf, Driver

LIBRARY: Final = "libcuda.so.1"
INVALID_CONTEXT: Final = 201
POINTER_MEMORY_TYPE: Final = 2
POINTER_DEVICE_ORDINAL: Final = 9
DEVICE_MEMORY: Final = 2
NON_BLOCKING_STREAM: Final = 1
"""One that does not wait for what the application does on the default stream, nor lets it wait."""
REGISTER_PORTABLE: Final = 1
"""Pinned for all contexts."""
DMA_BUF_HANDLE: Final = 1
PCI_ADDRESS_BYTES: Final = 32

_ARGUMENTS: Final[dict[str, tuple[Any, ...]]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, c_void_p),
    "cuGetErrorString": (c_int, c_void_p),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetCount": (c_void_p,),
    "cuDeviceGetPCIBusId": (c_char_p, c_int, c_int),
    "cuDevicePrimaryCtxGetState": (c_int, c_void_p, c_void_p),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (c_void_p,),
    "cuPointerGetAttribute": (c_void_p, c_int, c_uint64),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuMemcpyAsync": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemHostRegister_v2": (c_void_p, c_size_t, c_uint),
    "cuMemHostUnregister": (c_void_p,),
    "cuMemGetHandleForAddressRange": (c_void_p, c_uint64, c_size_t, c_int, c_uint64),
}
_ADVICE: Final = {
    "CUDA_ERROR_INVALID_VALUE": "not all of it is memory of the GPU or of the process any more",
    "CUDA_ERROR_OUT_OF_MEMORY": "the GPU has no room left, or the host none that can be pinned",
    "CUDA_ERROR_NOT_INITIALIZED": "a process that was forked after CUDA had begun cannot use it: start it by `spawn`",
}

_log = logging.getLogger(__name__)


class CudaDriver(Driver):
    """The GPUs that this process sees."""

    def __init__(self, library: Any) -> None:
        """Takes libcuda.

        Raises:
            TransferError: it finds no GPU; says why.
        """
        self._calls = _Calls(library)
        self._calls("cuInit", 0)
        self._lock = threading.Lock()
        self._devices: dict[int, CudaDevice] = {}

    def device_at(self, address: int) -> CudaDevice | None:
        if self._attribute(POINTER_MEMORY_TYPE, address) != DEVICE_MEMORY:
            return None
        ordinal = self._attribute(POINTER_DEVICE_ORDINAL, address)
        return None if ordinal is None else self._device(ordinal)

    def _attribute(self, attribute: int, address: int) -> int | None:
        """Of the memory at an address. Some drivers want any context for that, though it does not matter which."""
        value = c_int()
        code = self._calls.code("cuPointerGetAttribute", byref(value), attribute, address)
        if code == INVALID_CONTEXT:
            with self._any_context():
                code = self._calls.code("cuPointerGetAttribute", byref(value), attribute, address)
        return None if code else value.value

    @contextlib.contextmanager
    def _any_context(self) -> Iterator[None]:
        """That of a GPU which the process uses already: a new one would take memory of a GPU that is none of its own."""
        count = c_int()
        self._calls("cuDeviceGetCount", byref(count))
        used = next((ordinal for ordinal in range(count.value) if self._is_used(ordinal)), None)
        if used is None:
            yield
            return
        with self._device(used).context():
            yield

    def _is_used(self, ordinal: int) -> bool:
        flags, active = c_uint(), c_int()
        device = self._calls.value("cuDeviceGet", c_int(), ordinal)
        self._calls("cuDevicePrimaryCtxGetState", device, byref(flags), byref(active))
        return bool(active.value)

    def _device(self, ordinal: int) -> CudaDevice:
        with self._lock:
            if ordinal not in self._devices:
                self._devices[ordinal] = CudaDevice(self._calls, ordinal)
            return self._devices[ordinal]


class CudaDevice(Device):
    """One GPU, in its primary context: that of torch, and of everything that uses the runtime API."""

    def __init__(self, calls: _Calls, ordinal: int) -> None:
        self.name = f"cuda:{ordinal}"
        self._calls = calls
        device = calls.value("cuDeviceGet", c_int(), ordinal)
        text = ctypes.create_string_buffer(PCI_ADDRESS_BYTES)
        calls("cuDeviceGetPCIBusId", text, PCI_ADDRESS_BYTES, device)
        self.pci_address = text.value.decode().lower()
        self._context = calls.value("cuDevicePrimaryCtxRetain", c_void_p(), device)
        self._streams: list[int] = []
        """Of copies, that nobody uses now: as many as ever went on at once."""

    def copy(self, copies: Sequence[Copy]) -> None:
        with self.context(), self._stream() as stream:
            for target, source, num_bytes in copies:
                self._calls("cuMemcpyAsync", target, source, num_bytes, stream)

    def pin(self, address: int, num_bytes: int) -> None:
        with self.context():
            self._calls("cuMemHostRegister_v2", address, num_bytes, REGISTER_PORTABLE)

    def unpin(self, address: int) -> None:
        with self.context():
            self._calls("cuMemHostUnregister", address)

    def dma_buf(self, address: int, num_bytes: int) -> DmaBuf:
        page = mmap.PAGESIZE
        start = address // page * page
        end = -(-(address + num_bytes) // page) * page
        with self.context():
            handle = self._calls.value(
                "cuMemGetHandleForAddressRange", c_int(-1), start, end - start, DMA_BUF_HANDLE, 0
            )
        return DmaBuf(handle, address - start)

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """The calling thread's, meanwhile; afterwards it has again the one that it had."""
        self._calls("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._calls.code("cuCtxPopCurrent_v2", byref(c_void_p()))

    @contextlib.contextmanager
    def _stream(self) -> Iterator[int]:
        """Empty in the end, however that comes: nobody touches the memory any more then."""
        try:
            stream = self._streams.pop()
        except IndexError:
            stream = self._calls.value("cuStreamCreate", c_void_p(), NON_BLOCKING_STREAM)
        try:
            yield stream
        except BaseException:
            self._calls.code("cuStreamSynchronize", stream)
            self._streams.append(stream)
            raise
        self._calls("cuStreamSynchronize", stream)
        self._streams.append(stream)


class _Calls:
    """The driver's functions."""

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name, None)  # an old driver lacks the newest
            if function is not None:
                function.argtypes, function.restype = arguments, c_int

    def __call__(self, name: str, *arguments: Any) -> None:
        """Raises TransferError where the driver refuses."""
        code = self.code(name, *arguments)
        if code:
            raise TransferError(self._refusal(name, code))

    def code(self, name: str, *arguments: Any) -> int:
        """What the driver answers: 0 for success."""
        function = getattr(self._library, name, None)
        if function is None:
            raise TransferError(f"this NVIDIA driver is too old: it has no {name}")
        return int(function(*arguments))

    def value(self, name: str, room: c_int | c_void_p, *arguments: Any) -> int:
        """What the driver writes to its first argument. Raises as a call."""
        self(name, byref(room), *arguments)
        return room.value or 0

    def _refusal(self, name: str, code: int) -> str:
        known = self._text("cuGetErrorName", code) or f"error {code}"
        advice = _ADVICE.get(known)
        return f"NVIDIA's driver: {name}: {known}, {self._text('cuGetErrorString', code)}{f' ({advice})' if advice else ''}"

    def _text(self, name: str, code: int) -> str:
        text = c_char_p()
        return (text.value or b"").decode() if self.code(name, code, byref(text)) == 0 else ""


def find_cuda() -> CudaDriver | None:
    """None where the machine has no such driver, or no GPU that this process may use; the log says why then."""
    try:
        return CudaDriver(ctypes.CDLL(LIBRARY, mode=os.RTLD_NOW))
    except OSError as error:
        _log.debug("there is no NVIDIA driver here: %s", error)
    except TransferError as error:
        _log.warning("memory of GPUs cannot be moved: %s", error)
    return None
