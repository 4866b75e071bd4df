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
"""Emulated, and beside other tests; alone it takes a minute or two."""
TESTS = [
    "TestRdma::test_reads_what_is_there[move-12345-100001]",
    "TestRdma::test_writes_there_and_nowhere_else[post-12345-100001]",
    "TestRdma::test_scatters_and_gathers_pieces_in_order[post]",
    "TestRdma::test_a_read_only_export_refuses_writes[move]",
    "test_a_key_that_is_not_known_there_is_stale_and_others_go_on",
    "test_a_process_started_anew_is_stale",
    "test_in_order_the_last_range_lands_last",
]
MISSING = 2
"""The exit code where something that the virtual machine needs is not installed."""
pytestmark = pytest.mark.timeout(SECONDS + 60)


@pytest.fixture(scope="module")
def said() -> str:
    """By pytest in the guest. Without plugins and what they are told: what is imported in seconds here takes minutes there."""
    bare = ["-c", os.devnull, f"--rootdir={ROOT}", "--noconftest", "--assert=plain", "-p", "no:cacheprovider"]
    tests = [f"tests/transfer/test_rdma.py::{name}" for name in TESTS]
    done = subprocess.run(
        [
            "scripts/rdma-guest",
            "env",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1",
            sys.executable,
            "-m",
            "pytest",
            "-v",
            "-W",
            "ignore",
            *bare,
            *tests,
        ],
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
