"""The cases of tests/dropin, with upstream's own wheel: `scripts/acceptance conformance`.

MOONCAKE_UPSTREAM_PYTHON names an interpreter with `mooncake-transfer-engine-non-cuda` installed, and its `mooncake_master`
beside it (Debian: it needs libibverbs1 libnuma1 liburing2 libcurl4 libunwind8).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dropin.cases import EVERY
from tests.dropin.cases.world import CASES

PYTHON = os.environ.get("MOONCAKE_UPSTREAM_PYTHON", "")
ROOT = Path(__file__).parent.parent.parent
MOST_CRASHES = 60
pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON, reason="MOONCAKE_UPSTREAM_PYTHON names no interpreter with upstream's wheel"),
]


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What came of each case: empty for success. A case that ends the process fails; the others go on, with a new master,
    for the old one believes in the segment of the process that ended."""
    folder = tmp_path_factory.mktemp("cases")
    found = _run_all(list(CASES), folder)
    again = [name for name, failure in found.items() if failure and not CASES[name].differs]
    return {**found, **_run_all(again, folder)}  # a busy machine costs upstream an answer now and then


@pytest.mark.parametrize("name", CASES)
def test_case(failures: dict[str, str], name: str) -> None:
    """Upstream answers what the case expects, unless the case says that it does not."""
    assert EVERY
    if CASES[name].differs:
        assert failures.get(name) != "", "upstream answers as ours does: it is no difference any more"
    else:
        assert failures.get(name, "it was not run") == ""


def _run_all(names: list[str], folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for attempt in range(MOST_CRASHES):
        left = [name for name in names if name not in found]
        if not left:
            break
        begun = ""
        with _master(folder / f"master-{attempt}.log") as master:
            said = _run(master, left, folder / f"{attempt}.log")
        for line in said:
            begun = line.get("begins", begun)
            if "name" in line:
                found[line["name"]] = line["failure"]
        if begun and begun not in found:
            found[begun] = "it ended the process"
    return found


@contextlib.contextmanager
def _master(log: Path) -> Iterator[str]:
    port, metrics = _free_ports(2)
    command = [Path(PYTHON).parent / "mooncake_master", f"--rpc_port={port}", f"--metrics_port={metrics}"]
    with open(log, "wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            deadline = time.monotonic() + 30
            while not _listens(port):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


def _run(master: str, names: list[str], log: Path) -> list[dict[str, str]]:
    command = [PYTHON, "-m", "tests.dropin.cases.run", master, *names]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with open(log, "wb") as errors:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=600, env=environ
        )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
