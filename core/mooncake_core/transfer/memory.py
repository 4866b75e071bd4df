"""What may be registered or transferred: buffers, NumPy arrays, tensors, raw addresses; as the views that the engine moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast, runtime_checkable

from mooncake_core.errors import OutOfRange
from mooncake_core.transfer.addresses import Span, usable, view_of

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
    """All bytes of it, without a copy.

    Raises:
        OutOfRange: it is not contiguous, or memory that the CPU cannot read; says what to do.
    """
    if isinstance(memory, Span):
        return _view_of_span(memory)
    if not isinstance(memory, memoryview) and isinstance(memory, Tensor):
        return _view_of_tensor(memory)
    view = memoryview(cast(bytearray, memory))
    if not view.c_contiguous:
        raise OutOfRange("expected contiguous memory: transfer each of its parts, or a contiguous copy")
    return view.cast("B") if view.nbytes else memoryview(b"")


def parts_of(memory: Memory | Sequence[Memory]) -> Sequence[Memory]:
    """The memories of a gather list, or the one that it is."""
    if isinstance(memory, list | tuple) and not isinstance(memory, Span):
        return memory
    return [cast(Memory, memory)]


def _view_of_span(span: Span) -> memoryview:
    view = usable(span.address, span.length)
    if view is None:
        raise OutOfRange(
            f"the CPU cannot read {span.length} bytes at {span.address:#x}: memory of a GPU is moved through host memory"
        )
    return view


def _view_of_tensor(tensor: Tensor) -> memoryview:
    if tensor.device.type != "cpu":
        raise OutOfRange(f"the tensor lies on {tensor.device}: move a copy on the CPU instead (tensor.cpu())")
    if not tensor.is_contiguous():
        raise OutOfRange("expected a contiguous tensor: transfer each of its parts, or tensor.contiguous()")
    num_bytes = tensor.numel() * tensor.element_size()
    return view_of(tensor.data_ptr(), num_bytes) if num_bytes else memoryview(b"")
