"""What a node may take is what machine and container have left."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooncake_core.store.memory_limit import available_memory_bytes

MACHINE_KB = 8_000_000


def write(root: Path, **files: str) -> None:
    """A root with /proc and /sys; names are paths with __ for /, and _dot_ for a dot."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {MACHINE_KB} kB\n")
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    write(tmp_path, proc__self__cgroup="0::/\n", sys__fs__cgroup__memory_dot_max="max\n")
    assert available_memory_bytes(tmp_path) == MACHINE_KB * 1024


def test_the_limit_of_a_group_around_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        proc__self__cgroup="0::/a/b\n",
        sys__fs__cgroup__a__memory_dot_max="1000000\n",
        sys__fs__cgroup__a__memory_dot_current="700000\n",
        sys__fs__cgroup__a__memory_dot_stat="anon 5\ninactive_file 50000\n",
        sys__fs__cgroup__a__b__memory_dot_max="max\n",
    )
    assert available_memory_bytes(tmp_path) == 350_000


@pytest.mark.parametrize("path", ["/", "/docker/of-the-host"])
def test_version_one_in_a_container(tmp_path: Path, path: str) -> None:
    write(
        tmp_path,
        proc__self__cgroup=f"5:cpu:/x\n4:memory:{path}\n",
        sys__fs__cgroup__memory__memory_dot_limit_in_bytes="1000000\n",
        sys__fs__cgroup__memory__memory_dot_usage_in_bytes="1200000\n",
        sys__fs__cgroup__memory__memory_dot_stat="total_inactive_file 100000\n",
    )
    assert available_memory_bytes(tmp_path) == 0


def test_this_machine_has_some() -> None:
    assert available_memory_bytes() > 0
