"""A thousand endpoints, one after the other, leave nothing: `scripts/acceptance transfer_cycles`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mooncake_core.transfer import Endpoint
from tests.acceptance.footprint import footprint

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]
ROOT = Path(__file__).parent.parent.parent
CYCLES = 1000
WARM_UP = 100
GROWTH_BYTES = 1 << 20
"""Of 900 cycles, in the heap: a message left each time would be more."""
GROWTH_BLOCKS = 9000
"""Of Python's small objects: ten of each cycle."""
MORE_MAPS = 50
"""The allocators' arenas come and go."""
SETTLE_S = 20.0


@pytest.mark.parametrize("transports", ["tcp", "shm", "shm,tcp"])
def test_a_thousand_connections_leave_nothing_at_either_end(transports: str) -> None:
    command = [sys.executable, "-m", "tests.acceptance.far_endpoint", transports]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as far:
        assert far.stdin is not None
        assert far.stdout is not None
        stdin, stdout = far.stdin, far.stdout
        name = stdout.readline().strip()

        def there() -> dict[str, int]:
            stdin.write("\n")
            stdin.flush()
            found: dict[str, int] = json.loads(stdout.readline())
            return found

        started = time.monotonic()
        _cycle(name, transports, WARM_UP)
        before = _settled(footprint, {}), _settled(there, {})
        _cycle(name, transports, CYCLES - WARM_UP)
        after = _settled(footprint, before[0]), _settled(there, before[1])
        took_s = time.monotonic() - started
        print(f"\n{transports}: {CYCLES} cycles, {took_s / CYCLES * 1e3:.1f} ms each")
        for end, earlier, later in zip(("here", "there"), before, after, strict=True):
            print(f"  {end} after {WARM_UP}: {earlier}")
            print(f"  {end} after {CYCLES}: {later}")
        stdin.close()
        assert far.wait(30) == 0
    for earlier, later in zip(before, after, strict=True):
        assert _flat(earlier, later)


def _cycle(name: str, transports: str, count: int) -> None:
    for number in range(count):
        with Endpoint(transports=transports.split(",")) as here:
            peer = here.open(name)
            assert peer.first_address is not None
            memory = here.allocate_memory(65_536)
            memory.view[:8] = number.to_bytes(8, "little")
            here.write(peer, memory.view, peer.first_address)
            back = bytearray(8)
            here.read(peer, back, peer.first_address)
            assert int.from_bytes(back, "little") == number
            here.free_memory(memory)


def _settled(look: Callable[[], dict[str, int]], before: dict[str, int]) -> dict[str, int]:
    """What is held once the other end has noticed that a connection ended."""
    deadline = time.monotonic() + (SETTLE_S if before else 1.0)
    found = look()
    while time.monotonic() < deadline and not (before and _flat(before, found)):
        time.sleep(0.1)
        found = look()
    return found


def _flat(before: dict[str, int], after: dict[str, int]) -> bool:
    return (
        all(after[name] <= before[name] for name in ("descriptors", "threads", "kernel_threads"))
        and after["maps"] <= before["maps"] + MORE_MAPS
        and after["heap_bytes"] <= before["heap_bytes"] + GROWTH_BYTES
        and after["python_blocks"] <= before["python_blocks"] + GROWTH_BLOCKS
    )
