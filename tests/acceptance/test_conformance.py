"""The cases of tests/dropin, with upstream's own wheel: `scripts/acceptance conformance`.

MOONCAKE_UPSTREAM_PYTHON names an interpreter with `mooncake-transfer-engine-non-cuda` installed, and its `mooncake_master`
beside it (Debian: it needs libibverbs1 libnuma1 liburing2 libcurl4 libunwind8).
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.upstream import PYTHON, Lines, check, environ, free_ports, outcomes, run
from tests.dropin import cases, engine_cases
from tests.dropin.cases.world import CASES
from tests.dropin.engine_cases.world import CASES as ENGINE_CASES

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON, reason="MOONCAKE_UPSTREAM_PYTHON names no interpreter with upstream's wheel"),
]


@pytest.fixture(scope="module")
def store_failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With a new master after each crash, for the old one believes in the segment of the process that ended."""
    folder = tmp_path_factory.mktemp("store")

    def once(names: list[str], label: str) -> Lines:
        with _master(folder / f"{label}-master.log") as master:
            return run("tests.dropin.cases.run", [master, *names], folder / f"{label}.log")

    return outcomes(CASES, once)


@pytest.fixture(scope="module")
def engine_failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("engine")
    return outcomes(
        ENGINE_CASES, lambda names, label: run("tests.dropin.engine_cases.run", names, folder / f"{label}.log")
    )


@pytest.mark.parametrize("name", CASES)
def test_store(store_failures: dict[str, str], name: str) -> None:
    assert cases.EVERY
    check(CASES, store_failures, name)


@pytest.mark.parametrize("name", ENGINE_CASES)
def test_engine(engine_failures: dict[str, str], name: str) -> None:
    assert engine_cases.EVERY
    check(ENGINE_CASES, engine_failures, name)


@contextlib.contextmanager
def _master(log: Path) -> Iterator[str]:
    port, metrics = free_ports(2)
    command = [Path(PYTHON).parent / "mooncake_master", f"--rpc_port={port}", f"--metrics_port={metrics}"]
    with open(log, "wb") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environ()) as process:
        try:
            deadline = time.monotonic() + 30
            while not _listens(port):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
