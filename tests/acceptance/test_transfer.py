"""Transfers beside raw sockets and memcpy: `scripts/acceptance transfer`."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(("transport", "least"), [("tcp", 0.9), ("shm", 0.7)])
def test_transfers_are_close_to_what_the_machine_does_without_us(transport: str, least: float) -> None:
    command = [sys.executable, "-m", "mooncake_cli.main", "bench", "transfer", "--transport", transport]
    options = ["--sizes", "1MiB,4MiB,16MiB", "--at-least", str(least)]
    result = subprocess.run([*command, *options], capture_output=True, text=True, timeout=900)
    print(f"\n{result.stdout}{result.stderr}")
    assert result.returncode == 0, f"a share of the baseline is below {least}"
