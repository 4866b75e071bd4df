"""A part of test_rdma.py where this machine has no RDMA device: in the virtual machine of scripts/rdma-guest, which emulates one.
All of it runs there in `scripts/acceptance rdma`, for seven minutes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 500
"""Emulated, and only when other tests leave a processor idle; alone it takes a minute."""
TESTS = [
    "TestRdma::test_reads_what_is_there[move-12345-100001]",
    "TestRdma::test_writes_there_and_nowhere_else[post-12345-100001]",
    "test_a_key_that_is_not_known_there_is_stale_and_others_go_on",
    "test_in_order_the_last_range_lands_last",
]
MISSING = 2
"""The exit code where something that the virtual machine needs is not installed."""
pytestmark = pytest.mark.timeout(SECONDS + 60)


@pytest.fixture(scope="module")
def said() -> str:
    """By pytest in the guest. Without plugins and what they are told: what is imported in seconds here takes minutes there."""
    guest = ["nice", "-n", "19", "scripts/rdma-guest", "env", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1"]
    bare = ["-c", os.devnull, f"--rootdir={ROOT}", "--noconftest", "--assert=plain", "-p", "no:cacheprovider"]
    tests = [f"tests/transfer/test_rdma.py::{name}" for name in TESTS]
    done = subprocess.run(
        [*guest, sys.executable, "-m", "pytest", "-v", "-W", "ignore", *bare, *tests],
        cwd=ROOT,
        env={**os.environ, "RDMA_GUEST_TIMEOUT": str(SECONDS)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == MISSING and not done.stdout:
        pytest.skip(done.stderr.strip())
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", TESTS)
def test_queue_pairs_read_and_write_a_peers_memory(name: str, said: str) -> None:
    assert f"{name} PASSED" in said, said
