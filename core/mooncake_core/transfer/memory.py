"""What may be registered or transferred: buffers, NumPy arrays, tensors, raw addresses, of the host or a GPU; as the views that
the engine moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast, runtime_checkable

from mooncake_core.errors import OutOfRange
from mooncake_core.transfer.addresses import Span, usable, view_of
from mooncake_core.transfer.device_memory import device_of, device_view, known_gpus

if TYPE_CHECKING:
    import array
    import ctypes
    import mmap

    import numpy as np


@runtime_checkable
class Tensor(Protocol):
    """What is asked of a torch.Tensor; torch itself is never imported."""

    def data_ptr(self) -> int: ...

    def numel(self) -> int: ...

    def element_size(self) -> int: ...

    def is_contiguous(self) -> bool: ...

    @property
    def device(self) -> Any: ...


Bytes: TypeAlias = (
    "memoryview | bytearray | bytes | mmap.mmap | array.array[Any] | ctypes.Array[Any] | np.ndarray[Any, Any]"
)
Memory: TypeAlias = "Bytes | Tensor | Span"
"""Contiguous memory: anything with the buffer protocol, a torch.Tensor, or a raw address with a length."""


def view_of_memory(memory: Memory) -> memoryview:
    """All bytes of it, without a copy. Those of a GPU are not to be looked at (`device_memory`).

    Raises:
        OutOfRange: it is not contiguous, or memory that neither the CPU nor a driver reads; says what to do.
    """
    if isinstance(memory, Span):
        return _view_of_span(memory)
    if not isinstance(memory, memoryview) and isinstance(memory, Tensor):
        return _view_of_tensor(memory)
    view = memoryview(cast(bytearray, memory))
    if not view.c_contiguous:
        raise OutOfRange("expected contiguous memory: transfer each of its parts, or a contiguous copy")
    return view.cast("B") if view.nbytes else memoryview(b"")


def view_of_host_memory(memory: Memory) -> memoryview:
    """As view_of_memory, for who looks at the bytes.

    Raises:
        OutOfRange: as there, or it is memory of a GPU.
    """
    view = view_of_memory(memory)
    device = device_of(view)
    if device is not None:
        raise OutOfRange(f"expected memory of the host, got memory of {device.name}: give a copy (tensor.cpu())")
    return view


def parts_of(memory: Memory | Sequence[Memory]) -> Sequence[Memory]:
    """The memories of a gather list, or the one that it is."""
    if isinstance(memory, list | tuple) and not isinstance(memory, Span):
        return memory
    return [cast(Memory, memory)]


def _view_of_span(span: Span) -> memoryview:
    view = usable(span.address, span.length)
    if view is None and span.address > 0 and 0 < span.length <= (1 << 64) - span.address:
        view = device_view(span.address, span.length)
    if view is None:
        raise OutOfRange(
            f"the CPU cannot read {span.length} bytes at {span.address:#x}, nor are they memory of one of "
            f"{known_gpus()}"
        )
    return view


def _view_of_tensor(tensor: Tensor) -> memoryview:
    if not tensor.is_contiguous():
        raise OutOfRange("expected a contiguous tensor: transfer each of its parts, or tensor.contiguous()")
    num_bytes = tensor.numel() * tensor.element_size()
    if not num_bytes:
        return memoryview(b"")
    if tensor.device.type == "cpu":
        return view_of(tensor.data_ptr(), num_bytes)
    view = device_view(tensor.data_ptr(), num_bytes)
    if view is None:
        raise OutOfRange(
            f"the tensor lies on {tensor.device}, which is none of {known_gpus()}: move a copy on the CPU instead "
            "(tensor.cpu())"
        )
    return view
