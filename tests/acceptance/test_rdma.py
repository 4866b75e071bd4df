"""RDMA over SoftRoCE in a virtual machine: `scripts/acceptance rdma`. Emulated, all of it takes half an hour."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mooncake_core.inference.models import DEMO_FOLDER
from mooncake_core.testing.equality import draw_prompts, expected_tokens
from mooncake_core.testing.models import Reference

GUEST = Path(__file__).parents[2] / "scripts" / "rdma-guest"
pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86_64"),
]
AT_LEAST = 0.7
SIZES = [1 << 20, 4 << 20, 16 << 20]
PROMPT_TOKENS, NEW_TOKENS = 200, 8


def _guest(out: Path, *command: str, devices: int = 1, timeout_s: int = 1800, memory_mib: int = 3072) -> Any:
    """Runs it there, with this Python; what it left in result.json."""
    variables = {"RDMA_GUEST_OUT": str(out), "RDMA_GUEST_TIMEOUT": str(timeout_s), "RDMA_GUEST_DEVICES": str(devices)}
    variables["RDMA_GUEST_MEMORY"] = str(memory_mib)
    done = subprocess.run(
        [str(GUEST), sys.executable, *command],
        env={**os.environ, **variables},
        text=True,
        stdout=subprocess.PIPE,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, f"exit code {done.returncode}, see above"
    result = out / "result.json"
    return json.loads(result.read_text()) if result.exists() else None


def test_random_transfers_and_a_device_that_goes_down(tmp_path: Path) -> None:
    _guest(tmp_path, "-m", "pytest", "-q", "-s", "-m", "acceptance", "tests/transfer/test_rdma.py", devices=2)


def test_the_contract(tmp_path: Path) -> None:
    _guest(tmp_path, "-m", "pytest", "-q", "-s", "tests/transfer/test_rdma.py")


def test_bandwidth_beside_perftest(tmp_path: Path) -> None:
    rows = _guest(tmp_path, "-m", "tests.acceptance.rdma_guest", "bandwidth", json.dumps(SIZES))
    missed = [row for row in rows if row["ratio"] < AT_LEAST]
    assert missed == []


def test_store_prefill_and_decode(tmp_path: Path) -> None:
    """One prompt, of which the second time all blocks come from the pool. Takes a quarter of an hour."""
    prompt = draw_prompts(2, PROMPT_TOKENS, 512)[1]
    (expected,) = expected_tokens(Reference(DEMO_FOLDER), [prompt], NEW_TOKENS)
    asked = json.dumps([prompt, NEW_TOKENS])
    found = _guest(tmp_path, "-m", "tests.acceptance.rdma_guest", "cluster", asked, timeout_s=2400, memory_mib=6000)
    print(found)
    assert found["tokens"] == [expected[0]] * 2
    assert found["cached_tokens"] == [0, (PROMPT_TOKENS - 1) // 32 * 32]
    assert found["packets"] > 0
