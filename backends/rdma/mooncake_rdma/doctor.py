"""Whether this machine can move bytes by RDMA: pyverbs, devices, GIDs, and memory that may be pinned."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mooncake_core.config.schema import TransferConfig
from mooncake_core.doctor import Finding, Subject, fail, found_and_fix, ok, skip, warn
from mooncake_core.errors import MooncakeError
from mooncake_core.transfer.topology import read_inventory
from mooncake_core.transfer.weights import Weights
from mooncake_core.units import format_size
from mooncake_rdma.gpudirect import ADVICE, has_peer_memory
from mooncake_rdma.pinning import RAISE_LIMIT
from mooncake_rdma.ports import ACTIVE, read_ports, usable_ports
from mooncake_rdma.pyverbs_location import make_pyverbs_importable


def check(subject: Subject) -> Iterator[Finding]:
    ports = read_ports(subject.root / "sys")
    transfer = subject.config.transfer if subject.config else TransferConfig()
    yield from _names(transfer, [port.device for port in ports])
    is_wanted = "rdma" in transfer.transports
    if not ports and not is_wanted:
        yield skip("this machine has no RDMA device, and no configuration that asks for one was given")
        return
    bad = fail if is_wanted and "rdma" not in transfer.optional else warn
    try:
        for port in usable_ports(ports):
            yield ok(
                f"{port} is {port.state} at {port.rate_gbps:g} Gbit/s, GID {port.gids[0].address} ({port.gids[0].fabric})"
            )
    except MooncakeError as error:
        yield _of(error, bad)
    for port in ports:
        if port.state != ACTIVE:
            yield warn(f"{port} is {port.state}", "bring the link up: it carries nothing")
    yield from _gpu_direct(subject.root)
    try:
        make_pyverbs_importable()
        yield ok("pyverbs loads")
    except MooncakeError as error:
        yield _of(error, bad)
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        yield ok("a process may pin any amount of memory")
    else:
        yield bad(
            f"a process may pin {format_size(limit)}; a node pins its segment, and once more for each export",
            RAISE_LIMIT,
        )


def _gpu_direct(root: Path) -> Iterator[Finding]:
    """Whether NICs reach memory of GPUs, where there are some."""
    if not read_inventory(root / "sys").gpus:
        return
    version = root / "proc/driver/nvidia/version"
    if has_peer_memory(root / "sys"):
        yield ok("GPUDirect: NICs reach memory of GPUs by nvidia-peermem")
    elif version.is_file() and "Open Kernel Module" in version.read_text():
        yield ok("GPUDirect: NICs reach memory of GPUs by dma-buf, where Linux is 5.12 or newer")
    else:
        yield warn("GPUDirect: NICs do not reach memory of GPUs, which goes through memory of the host", ADVICE)


def _names(transfer: TransferConfig, devices: Sequence[str]) -> Iterator[Finding]:
    """Names that are none of this machine's devices: another host's, or misspelt."""
    named = {
        "weights": Weights(transfer.weights).devices,
        **{f"topology.{place}": [*nics.preferred, *nics.secondary] for place, nics in transfer.topology.items()},
    }
    for setting, name in ((setting, name) for setting, names in named.items() for name in names):
        if name not in devices:
            yield warn(
                f"transfer.{setting}: expected an RDMA device, got {name}; this machine has {', '.join(devices) or 'none'}",
                "correct the name, where no host of the cluster has such a device",
            )


def _of(error: MooncakeError, bad: Callable[[str, str], Finding]) -> Finding:
    return bad(*found_and_fix(error))
