"""Has the kernel set up pages before they are used: a page's first use costs more than copying it does."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from typing import Final

MADV_POPULATE_READ: Final = 22
MADV_POPULATE_WRITE: Final = 23
"""Both since Linux 5.14; EINVAL before."""
NICENESS: Final = 10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def populate(address: int, num_bytes: int, *, write: bool) -> int:
    """Makes whole pages from `address` on (the beginning of one) ready for reading or writing; what is in them stays. Other
    threads go on meanwhile. 0, or an errno.
    """
    whole_bytes = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    advice = MADV_POPULATE_WRITE if write else MADV_POPULATE_READ
    return ctypes.get_errno() if _libc.madvise(address, whole_bytes, advice) else 0


def yield_to_others() -> None:
    """The calling thread works when others leave the processor idle, or nearly so."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)  # on Linux: of this thread alone
