"""What keeps memory from being pinned for a device, and what to do. Says so before the kernel is asked, where it is known."""

from __future__ import annotations

import errno
import resource
from pathlib import Path
from typing import Final

from mooncake_core.units import format_size

STATUS: Final = Path("/proc/self/status")
IPC_LOCK: Final = 14
"""The number of the capability that lifts the limit."""
RAISE_LIMIT: Final = "ulimit -l unlimited; LimitMEMLOCK=infinity in a systemd unit; --ulimit memlock=-1 for a container"


def limit_bytes(status: Path = STATUS) -> int | None:
    """That this process may lock; None: as much as there is."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    is_privileged = int(_field(status, "CapEff"), 16) >> IPC_LOCK & 1
    return None if is_privileged or limit == resource.RLIM_INFINITY else limit


def refusal(num_bytes: int, status: Path = STATUS) -> str | None:
    """Why the kernel will not pin so many bytes more, and what to do; None where it may."""
    limit = limit_bytes(status)
    pinned = int(_field(status, "VmPin").split()[0]) << 10
    if limit is None or pinned + num_bytes <= limit:
        return None
    return (
        f"this process may lock {format_size(limit)}, and has pinned {format_size(pinned)} of that (each export pins "
        f"what it covers once more). Raise the limit: {RAISE_LIMIT}"
    )


def advice(number: int, most_regions: int, status: Path = STATUS) -> str:
    """What to do about an errno of a registration; empty where nothing is known. `most_regions`: of the device."""
    if number in (errno.ENOMEM, errno.ENOSPC):
        limit = limit_bytes(status)
        if limit is not None:
            return f". This process may lock {format_size(limit)}. Raise the limit: {RAISE_LIMIT}"
        return (
            ". Locked memory is not limited here, so the machine has no memory left or the device no room for one memory "
            f"region (MKEY) more: it takes {most_regions} (max_mr) of all processes together, `rdma resource show` counts "
            "them. Each registration and each export takes one: register fewer and larger regions, withdraw exports"
        )
    if number == errno.EFAULT:
        return (
            ". It is no memory that the kernel can pin: GPU memory needs the driver's module (modprobe nvidia-peermem), "
            "or is to be moved through host memory"
        )
    return ""


def _field(status: Path, name: str) -> str:
    """Of the kernel's page on this process; 0 where it has none such."""
    lines = (line.partition(":") for line in status.read_text().splitlines())
    return next((value.strip() for key, _, value in lines if key == name), "0")
