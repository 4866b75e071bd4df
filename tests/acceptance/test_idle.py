"""An idle cluster costs next to nothing, and stops at once: `scripts/acceptance idle`."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from mooncake_core.testing.cluster import STOPPED_ALONE_S, Cluster

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]
CONFIGS = Path(__file__).parent.parent.parent / "configs"
WATCHED_S = 60.0


def test_idle_processes_use_under_one_percent_of_a_core_together(tmp_path: Path) -> None:
    cluster = Cluster(CONFIGS / "1p1d.yaml", tmp_path)
    try:
        cluster.complete("In the beginning")
        time.sleep(5)
        supervisor = psutil.Process(cluster.process.pid)
        processes = [supervisor, *supervisor.children(recursive=True)]
        before = _cpu_s(processes)
        time.sleep(WATCHED_S)
        share = (_cpu_s(processes) - before) / WATCHED_S
        memory = {process.cmdline()[-1]: process.memory_info().rss >> 20 for process in processes[1:]}
    finally:
        stopped_s = cluster.stop()
    print(
        f"\n{len(processes)} idle processes use {share:.2%} of a core; MiB resident: {memory}; stopped in {stopped_s:.1f} s"
    )
    assert share < 0.01
    assert stopped_s < STOPPED_ALONE_S


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)
