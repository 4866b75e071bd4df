"""The scripts, on a machine that lacks something."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CALLERS = ["install", "check", "test", "quickstart", "acceptance", "try-vllm"]


@pytest.mark.parametrize("name", CALLERS)
def test_without_a_python_one_is_told_how_to_run_what_one_ran(name: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    environ = {**os.environ, "PYTHON": "/no/python"}
    result = subprocess.run([f"scripts/{name}"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.endswith(f"or name it: PYTHON=/path/to/python3 scripts/{name}\n")


def test_the_guest_says_what_is_missing_and_how_to_install_it(tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "env", "python3", "uname"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    environ = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    result = subprocess.run(
        [ROOT / "scripts/rdma-guest", "true"], env=environ, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr.startswith("rdma-guest: not found: qemu-system-x86_64")
    assert "apt-get install" in result.stderr
    assert "python3-pyverbs" in result.stderr
