"""A master of its own for the tests of `mooncake.store`."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooncake_core.testing.cluster import as_json
from tests.dropin.cases.world import World

MASTER_ONLY = """
cluster: dropin
master: {port: 0, admin_port: 0}
store: []
prefill: []
decode: []
"""


@contextlib.contextmanager
def running_master(folder: Path, settings: str = "") -> Iterator[str]:
    """host:port of a master that runs meanwhile."""
    config = folder / "master.yaml"
    config.write_text(MASTER_ONLY + settings)
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}

    def mooncake(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mooncake_cli.main", *arguments, "-c", str(config)]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)

    started = mooncake("start", "--role", "master", "--detach", "--json")
    assert started.returncode == 0, started.stderr
    try:
        yield as_json(started)["master_address"].removeprefix("tcp://")
    finally:
        mooncake("stop")


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a master that all tests share."""
    with running_master(tmp_path_factory.mktemp("dropin")) as address:
        yield address


@pytest.fixture(scope="module")
def module_world(master: str) -> Iterator[World]:
    world = World(master, upstream=False)
    yield world
    world.close()
    gc.collect()


@pytest.fixture
def world(module_world: World) -> Iterator[World]:
    """A pool, and the stores of a module's tests; each begins with an empty one."""
    yield module_world
    module_world.empty()
