"""Copies between memories; long ones leave the interpreter lock to others."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Final

from mooncake_core.transfer.slices import pair

LOCKED_BYTES: Final = 32 << 10
"""Shorter pieces are copied faster than the lock is given away and taken back."""


class _PyBuffer(ctypes.Structure):
    """CPython's Py_buffer."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def address_of(view: memoryview) -> int:
    """Where a contiguous view begins; right while the view lives."""
    buffer = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0)
    address = buffer.buf or 0
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return address


def copy(pieces: Sequence[memoryview], memories: Sequence[memoryview], *, write: bool) -> None:
    """Moves bytes between local pieces and mapped memory of the same total length."""
    for here, there in pair(pieces, memories):
        target, source = (there, here) if write else (here, there)
        if here.nbytes <= LOCKED_BYTES:
            target[:] = source
        else:
            ctypes.memmove(address_of(target), address_of(source), here.nbytes)
