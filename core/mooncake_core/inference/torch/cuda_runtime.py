"""What torch does not offer of the CUDA runtime: strided copies, and pinning memory that is there already."""

from __future__ import annotations

import ctypes
from typing import Any, Final

import torch

from mooncake_core.errors import EngineError

_TO_DEVICE: Final = 1
_TO_HOST: Final = 2
"""Values of cudaMemcpyKind."""


class CudaRuntime:
    """The runtime that torch has loaded, for one device."""

    def __init__(self, device: Any) -> None:
        """
        Raises:
            OSError: it is not found.
            AttributeError: it lacks a function.
        """
        self._device = device
        library = ctypes.CDLL(f"libcudart.so.{str(torch.version.cuda).partition('.')[0]}")
        self._copy = library.cudaMemcpy2DAsync
        self._copy.argtypes = [
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,  # target, its pitch, source, its pitch
            ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p,  # width, height, kind, stream
        ]  # fmt: skip
        self._register = library.cudaHostRegister
        self._register.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
        self._unregister = library.cudaHostUnregister
        self._unregister.argtypes = [ctypes.c_void_p]
        self._take_error = library.cudaGetLastError

    def pin(self, address: int, num_bytes: int) -> bool:
        """Whether the memory is pinned now: then copies from and to it run beside the computation."""
        with torch.cuda.device(self._device):
            return self._good(self._register(address, num_bytes, 0))

    def unpin(self, address: int) -> None:
        """Undoes `pin`."""
        with torch.cuda.device(self._device):
            self._good(self._unregister(address))

    def copy_rows(
        self,
        target: int,
        source: int,
        *,
        pitch_bytes: int,
        width_bytes: int,
        num_rows: int,
        to_host: bool,
    ) -> None:
        """Starts copying rows that lie pitch_bytes apart on both sides, on torch's current stream.

        Raises:
            EngineError: the runtime refuses.
        """
        kind = _TO_HOST if to_host else _TO_DEVICE
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream(self._device).cuda_stream
            code = self._copy(target, pitch_bytes, source, pitch_bytes, width_bytes, num_rows, kind, stream)
            if not self._good(code):
                raise EngineError(f"copying KV between GPU and host failed with CUDA error {code}")

    def _good(self, code: int) -> bool:
        if code:
            self._take_error()  # otherwise torch takes it for an error of its next launch
        return code == 0
