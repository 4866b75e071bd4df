"""What a process holds: descriptors, threads, maps, memory.

Of memory, what is in use is counted: how much of the heap the C library keeps back for later depends on which thread freed what.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from pathlib import Path


class _Mallinfo2(ctypes.Structure):
    """What glibc (2.33 or newer) tells of its heaps."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    )


_mallinfo2 = ctypes.CDLL(None).mallinfo2
_mallinfo2.restype = _Mallinfo2


def footprint() -> dict[str, int]:
    """Of this process, now."""
    gc.collect()
    heap = _mallinfo2()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "kernel_threads": len(os.listdir("/proc/self/task")),
        "maps": len(Path("/proc/self/maps").read_text().splitlines()),
        "heap_bytes": heap.uordblks + heap.hblkhd,
        "python_blocks": sys.getallocatedblocks(),
    }
