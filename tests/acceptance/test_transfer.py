"""Transfers beside raw sockets, memcpy, upstream's engine and NIXL: `scripts/acceptance transfer`.

MOONCAKE_UPSTREAM_PYTHON names an interpreter with `mooncake-transfer-engine-non-cuda` installed, MOONCAKE_NIXL_PYTHON one with
`nixl-cu12`, which needs no GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.upstream import PYTHON

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1200)]
DROPIN = Path(__file__).parent.parent.parent / "dropin"
NIXL_PYTHON = os.environ.get("MOONCAKE_NIXL_PYTHON", "")
OPERATION_S = 15e-6
ELEMENT_S = 3e-6
NIXL_ABOUT = 0.9
"""Long writes end when the last byte is copied, for both: what lies between is the machine's noise."""
HOST_SLOWER = 1.3
"""A host's own steps may be so many times as slow beside the engine as they are beside plain sockets."""


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mooncake_cli.main", "bench", "transfer", *options]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(DROPIN), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environ)
    print(f"\n{result.stdout}{result.stderr}")
    return result


@pytest.mark.parametrize(("transport", "least"), [("tcp", 0.9), ("shm", 0.7)])
def test_transfers_are_close_to_what_the_machine_does_without_us(transport: str, least: float) -> None:
    sizes = ["--transport", transport, "--sizes", "1MiB,4MiB,16MiB"]
    bench(*sizes, "--checksum", "on")  # to be read: sums cost what they cost
    result = bench(*sizes, "--checksum", "off", "--pairs", "30", "--at-least", str(least))
    assert result.returncode == 0, f"a share of the baseline is below {least}"


@pytest.mark.parametrize(("batch", "most_s"), [(1, OPERATION_S), (128, ELEMENT_S)])
def test_small_reads_over_shared_memory_cost_little_beyond_the_copy(batch: int, most_s: float) -> None:
    small = ["--transport", "shm", "--sizes", "4KiB", "--direction", "read", "--checksum", "off", "--threads", "1"]
    result = bench(*small, "--batch", str(batch), "--json")
    (cell,) = json.loads(result.stdout)["cells"]
    overhead_s = cell["block_s"] - cell["baseline_latency_s"]["p50"]
    print(f"4 KiB read, batch of {batch}: {overhead_s * 1e6:.2f} us beyond the memcpy; at most {most_s * 1e6:g} us")
    assert overhead_s <= most_s


def test_a_host_that_computes_goes_on_as_beside_plain_sockets() -> None:
    load = ["--transport", "tcp", "--sizes", "64KiB,1MiB,16MiB", "--checksum", "off", "--threads", "2"]
    result = bench(*load, "--host-step", "2ms", "--json")
    shares = {}
    for cell in json.loads(result.stdout)["cells"]:
        ours, raw = (cell["host"][side]["median"] for side in ("slower", "baseline_slower"))
        name = f"{cell['kind']} {cell['block_bytes'] >> 10} KiB"
        print(f"{name}: a step of 2 ms takes {ours:.2f} times as long as when idle; beside sockets {raw:.2f} times")
        shares[name] = ours / raw
    assert max(shares.values()) <= HOST_SLOWER, shares


@pytest.mark.skipif(not PYTHON, reason="MOONCAKE_UPSTREAM_PYTHON names no interpreter with upstream's wheel")
def test_many_blocks_move_faster_than_with_upstreams_engine() -> None:
    result = bench("--against", PYTHON, "--sizes", "64KiB", "--batch", "64", "--threads", "1", "--at-least", "1.5")
    assert result.returncode == 0, "64 blocks of 64 KiB: less than 1.5 times upstream's rate"


@pytest.mark.skipif(not NIXL_PYTHON, reason="MOONCAKE_NIXL_PYTHON names no interpreter with NIXL")
@pytest.mark.parametrize(
    ("transport", "direction", "sizes"),
    [("tcp", "read", "4KiB,64KiB,256KiB,1MiB"), ("tcp", "write", "4KiB,64KiB"), ("shm", "read,write", "1MiB,4MiB")],
)
def test_scattered_blocks_move_faster_than_with_nixl(transport: str, direction: str, sizes: str) -> None:
    which = ["--transport", transport, "--direction", direction, "--sizes", sizes]
    apart = ["--scattered", "--batch", "64", "--threads", "1", "--at-least", "1"]
    result = bench("--against", NIXL_PYTHON, *which, *apart)
    assert result.returncode == 0, f"over {transport}: less than NIXL's rate"


@pytest.mark.skipif(not NIXL_PYTHON, reason="MOONCAKE_NIXL_PYTHON names no interpreter with NIXL")
@pytest.mark.parametrize(
    ("batch", "direction", "sizes", "least"),
    [
        (64, "read", "4KiB,64KiB,256KiB,1MiB", 1),
        (64, "write", "4KiB,64KiB", 1),
        (64, "write", "256KiB,1MiB", NIXL_ABOUT),
        (1, "read", "64KiB,256KiB,1MiB", 1),
        (1, "write", "64KiB,256KiB,1MiB", NIXL_ABOUT),
    ],
)
def test_who_looks_as_nixl_does_is_as_fast(batch: int, direction: str, sizes: str, least: float) -> None:
    which = ["--transport", "tcp", "--direction", direction, "--sizes", sizes, "--batch", str(batch)]
    looking = ["--scattered", "--threads", "1", "--busy-poll", "200us", "--at-least", str(least)]
    result = bench("--against", NIXL_PYTHON, *which, *looking)
    assert result.returncode == 0, f"less than {least} of NIXL's rate"


@pytest.mark.skipif(not NIXL_PYTHON, reason="MOONCAKE_NIXL_PYTHON names no interpreter with NIXL")
def test_what_moves_slower_than_with_nixl_is_printed() -> None:
    """Who sleeps until something comes has to be woken, where NIXL keeps two processors busy with looking; and around a single
    small block the interpreter's own work takes longer than the block."""
    common = ["--against", NIXL_PYTHON, "--transport", "tcp", "--scattered", "--threads", "1"]
    assert bench(*common, "--sizes", "4KiB,64KiB,256KiB,1MiB", "--batch", "1").returncode == 0
    assert bench(*common, "--direction", "write", "--sizes", "256KiB,1MiB", "--batch", "64").returncode == 0
    assert bench(*common, "--sizes", "4KiB", "--batch", "1", "--busy-poll", "200us").returncode == 0
