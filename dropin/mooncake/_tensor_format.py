"""How a tensor lies in an object: a header of 128 bytes, then its bytes in row-major order."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from mooncake_core.transfer.addresses import view_of

if TYPE_CHECKING:
    from torch import Tensor

HEADER_BYTES: Final = 128
"""A multiple of every element's size, so that data can be used where it lies."""
MAX_DIMENSIONS: Final = 8
_MAGIC: Final = b"MNCTNSR1"
_HEADER: Final = struct.Struct("<8s24sI4x8Q24x")  # magic, name of the type, dimensions, shape
assert _HEADER.size == HEADER_BYTES


def torch() -> Any:
    """The module, imported when a tensor is first used.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise RuntimeError("tensors need torch, which is not installed here: pip install torch") from error
    return torch


def encode(tensor: Any) -> tuple[list[memoryview], Tensor]:
    """Header and data, and the tensor that owns the data: keep it for as long.

    Raises:
        TypeError: it is no tensor, or one that cannot be stored.
    """
    if not isinstance(tensor, torch().Tensor):
        raise TypeError(f"expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dim() > MAX_DIMENSIONS or tensor.layout != torch().strided:
        raise TypeError(f"expected a dense tensor of at most {MAX_DIMENSIONS} dimensions, got {tensor.dim()}")
    owner = tensor.detach().to("cpu").contiguous()
    shape = [*owner.shape, *[0] * (MAX_DIMENSIONS - owner.dim())]
    name = str(owner.dtype).removeprefix("torch.")
    header = _HEADER.pack(_MAGIC, name.encode(), owner.dim(), *shape)
    return [memoryview(header), view_of(owner.data_ptr(), owner.nbytes) if owner.nbytes else memoryview(b"")], owner


def blank(num_bytes: int) -> Tensor:
    """Memory for an encoded tensor of so many bytes."""
    made: Tensor = torch().empty(num_bytes, dtype=torch().uint8)
    return made


def over(memory: memoryview) -> Tensor:
    """A tensor of bytes that lies in this memory."""
    made: Tensor = torch().frombuffer(memory, dtype=torch().uint8)
    return made


def decode(encoded: Tensor) -> Tensor | None:
    """The tensor in these bytes, where it lies; None where there is none."""
    if encoded.nbytes < HEADER_BYTES:
        return None
    magic, name, dimensions, *shape = _HEADER.unpack(bytes(encoded[:HEADER_BYTES].tolist()))
    kind = getattr(torch(), name.rstrip(b"\0").decode(errors="replace"), None)
    if magic != _MAGIC or not isinstance(kind, torch().dtype) or dimensions > MAX_DIMENSIONS:
        return None
    wanted = torch().Size(shape[:dimensions])
    if encoded.nbytes != HEADER_BYTES + wanted.numel() * kind.itemsize:
        return None
    found: Tensor = encoded[HEADER_BYTES:].view(kind).reshape(wanted)
    return found
