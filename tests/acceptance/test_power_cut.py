"""The power goes while an SSD tier writes, in a virtual machine with a disk of its own: `scripts/acceptance power_cut`.

The machine is killed from outside: what its kernel had not brought to the disk is gone, as with a real one. What a disk itself
had taken and not yet flushed is not: that a disk keeps its promises is beyond this test.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.acceptance.power_cut_guest import CAPACITY_BYTES, OBJECT_BYTES, SYNC_INTERVAL_S

GUEST = Path(__file__).parents[2] / "scripts" / "rdma-guest"
pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86_64"),
    pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="needs mkfs.ext4"),
]
CUTS = 10
DISK_BYTES = 512 << 20
SHORTEST_S, LONGEST_S = 2.0, 8.0
"""From the first write to the cut."""
PATIENCE_S = 180.0


@dataclass
class Boot:
    """One life of the machine."""

    written: dict[int, float] = field(default_factory=dict)
    """Number of the last object of a batch, to the second."""
    safe: int = -1
    """All objects up to this one survive."""
    ended_at: float = 0.0
    longest_sync_s: float = 0.0

    @classmethod
    def of(cls, log: str) -> Boot:
        boot = cls()
        for line in log.splitlines():
            event, at, number = line.split()
            if event == "written":
                boot.written[int(number)] = float(at)
            else:
                boot.safe = int(number)
                boot.longest_sync_s = max(boot.longest_sync_s, float(at) - boot.ended_at)
            boot.ended_at = float(at)
        return boot

    def age_s(self, number: int) -> float:
        """Of an object when the power went."""
        return self.ended_at - min((at for last, at in self.written.items() if last >= number), default=self.ended_at)


class Machine:
    """The guest with its disk, and the folder that it shares with us."""

    def __init__(self, disk: Path, out: Path, first: int) -> None:
        self._out = out
        out.mkdir()
        variables = {"RDMA_GUEST_DISK": str(disk), "RDMA_GUEST_OUT": str(out), "RDMA_GUEST_TIMEOUT": "600"}
        self._script = psutil.Popen(
            [str(GUEST), sys.executable, "-m", "tests.acceptance.power_cut_guest", "/out", str(first)],
            env={**os.environ, **variables},
            stderr=subprocess.PIPE,
            text=True,
        )

    def kept(self) -> dict[str, list[int]]:
        """What its disk had when it came up; waits until it writes again."""
        deadline = time.monotonic() + PATIENCE_S
        while not (self._out / "log.txt").exists():
            if self._script.poll() is not None:
                raise AssertionError(f"the guest ended: {self._script.stderr.read()}")
            assert time.monotonic() < deadline, "the guest does not write"
            time.sleep(0.05)
        return json.loads((self._out / "kept.json").read_text())  # type: ignore[no-any-return]

    def cut(self) -> Boot:
        """Its power."""
        for process in self._script.children(recursive=True):
            if process.name().startswith("qemu"):
                process.kill()
        self._script.communicate(timeout=60)
        return Boot.of((self._out / "log.txt").read_text())


def test_no_wrong_byte_is_read_and_what_is_lost_is_young(tmp_path: Path) -> None:
    moments = random.Random(11)
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
    boot, safe, highest = Boot(), -1, -1
    gone: set[int] = set()
    oldest_lost_s, most_lost, objects = 0.0, 0, 0
    for cut in range(CUTS + 1):  # the last life tells what the last cut has left
        machine = Machine(disk, tmp_path / f"boot-{cut}", highest + 1)
        kept = machine.kept()
        right = set(kept["right"])
        assert kept["wrong"] == []
        oldest = min(right, default=0)  # older ones made room
        missing = set(range(oldest, max(safe, boot.safe) + 1)) - gone - right
        assert not missing, f"lost after cut {cut}: {sorted(missing)}"
        if highest * OBJECT_BYTES > 2 * CAPACITY_BYTES:
            assert len(right) * OBJECT_BYTES > CAPACITY_BYTES / 2
        lost = set(range(max(safe, boot.safe) + 1, highest + 1)) - right
        oldest_lost_s = max([oldest_lost_s, *(boot.age_s(number) for number in lost)])
        assert oldest_lost_s <= SYNC_INTERVAL_S + boot.longest_sync_s
        gone |= lost
        most_lost, objects, safe = max(most_lost, len(lost)), objects + len(right), max(right, default=-1)
        time.sleep(moments.uniform(SHORTEST_S, LONGEST_S))
        boot = machine.cut()
        highest = max(boot.written, default=highest)
    print(
        f"\n{CUTS} power cuts while {highest + 1} objects were written: {objects} read back and right, none wrong, nothing lost "
        f"that was synced (every {SYNC_INTERVAL_S:g}s); at most {most_lost} lost by one cut, the oldest {oldest_lost_s:.2f}s old"
    )
