"""Running the cases of tests/dropin in upstream's interpreter, which MOONCAKE_UPSTREAM_PYTHON names."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.dropin.casework import Case

PYTHON = os.environ.get("MOONCAKE_UPSTREAM_PYTHON", "")
ROOT = Path(__file__).parent.parent.parent
MOST_CRASHES = 60

Lines = list[dict[str, str]]


def outcomes(cases: dict[str, Case], once: Callable[[list[str], str], Lines]) -> dict[str, str]:
    """What came of each case: empty for success. A case that ends the process fails, and the others go on. `once` runs some,
    given a name for their logs."""
    found = _until_all(list(cases), "first", once)
    again = [name for name, failure in found.items() if failure and not cases[name].differs]
    return {**found, **_until_all(again, "again", once)}  # a busy machine costs upstream an answer now and then


def run(module: str, arguments: Sequence[str], log: Path) -> Lines:
    """Runs a module of tests/dropin there; the lines of JSON that it prints."""
    with open(log, "wb") as errors:
        done = subprocess.run(
            [PYTHON, "-m", module, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=600,
            env=environ(),
        )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]


def environ() -> dict[str, str]:
    """This process', without what would hide upstream's modules."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def check(cases: dict[str, Case], failures: dict[str, str], name: str) -> None:
    """Upstream answers what the case expects, unless the case says that it does not."""
    assert name in failures, "it was not run"
    if cases[name].differs:
        assert failures[name] != "", "upstream answers as ours does: it is no difference any more"
    else:
        assert failures[name] == ""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _until_all(names: list[str], label: str, once: Callable[[list[str], str], Lines]) -> dict[str, str]:
    found: dict[str, str] = {}
    for attempt in range(MOST_CRASHES):
        left = [name for name in names if name not in found]
        if not left:
            break
        begun = ""
        for line in once(left, f"{label}-{attempt}"):
            begun = line.get("begins", begun)
            if "name" in line:
                found[line["name"]] = line["failure"]
        if begun and begun not in found:
            found[begun] = "it ended the process"
    return found
