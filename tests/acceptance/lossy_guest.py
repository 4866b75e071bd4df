"""Two hosts whose link delays and loses: what one connection carries, and what several do. Runs where the kernel has sch_netem;
its arguments are those of `scripts/netns-hosts shape`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.acceptance import netns

BENCH = [sys.executable, "-m", "mooncake_cli.main", "bench", "transfer", "--transport", "tcp", "--json"]
CONNECTIONS = (1, 4, 8)
LOAD = ["--sizes", "1MiB", "--batch", "4", "--checksum", "off", "--seconds", "500ms"]
OUT = Path("/out/result.json")


def main() -> None:
    with netns.hosts(2) as (near, far):
        netns.shape(1, *sys.argv[1:])
        target = [*_on(far), *BENCH, "--target", "--host", far.address, "--memory", "64MiB"]
        with subprocess.Popen(target, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            address = _first_object(process.stdout)["address"]
            rows = [row for count in CONNECTIONS for row in _measured(near, address, count)]
            process.terminate()
    OUT.write_text(json.dumps(rows))


def _measured(host: netns.Host, target: str, count: int) -> list[dict[str, Any]]:
    """With so many connections, each with a thread; a row per direction."""
    several = ["--threads", str(count), "--connections", str(count)]
    command = [*_on(host), *BENCH, "--initiator", target, *LOAD, *several]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    cells = json.loads(done.stdout)["cells"]
    return [{"connections": count, "kind": cell["kind"], "mb_per_s": cell["bytes_per_s"] / 1e6} for cell in cells]


def _on(host: netns.Host) -> list[str]:
    return ["ip", "netns", "exec", host.namespace]


def _first_object(lines: Any) -> dict[str, Any]:
    """That a process prints in several lines."""
    text = ""
    for line in lines:
        text += line
        if line.startswith("}"):
            break
    found: dict[str, Any] = json.loads(text)
    return found


if __name__ == "__main__":
    main()
