"""Which clusters run here: live ones are found, leftovers of dead ones are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from mooncake_core.errors import UsageError
from mooncake_core.roles import run_directory
from mooncake_core.roles.restart import LONGEST_DELAY_S, RestartPolicy
from mooncake_core.roles.run_directory import ProcessState, RunDirectory
from tests.roles.start_states import state


def test_a_claimed_state_is_found_and_released(tmp_path: Path) -> None:
    file = RunDirectory("c", tmp_path).claim("all")
    file.write(state("c"))
    assert run_directory.find("c", tmp_path) == [state("c")]
    assert run_directory.find(None, tmp_path) == [state("c")]
    file.close()
    file.close()
    assert run_directory.find("c", tmp_path) == []
    assert list((tmp_path / "c").iterdir()) == []


def test_a_second_claim_names_the_first(tmp_path: Path) -> None:
    first = RunDirectory("c", tmp_path).claim("all")
    first.write(state("c", pid=4711))
    with pytest.raises(UsageError, match="already runs here as process 4711: `mooncake stop --cluster c` ends it"):
        RunDirectory("c", tmp_path).claim("all")
    other = RunDirectory("c", tmp_path).claim("prefill")
    other.close()
    first.close()


def test_a_process_is_not_claimed_twice(tmp_path: Path) -> None:
    running = [ProcessState(name=name, role="prefill", pid=1) for name in ("prefill", "prefill-node")]
    first = RunDirectory("c", tmp_path).claim("all", {"prefill"})
    first.write(msgspec.structs.replace(state("c", pid=4711), processes=running))
    with pytest.raises(UsageError, match="prefill of all\\) already runs here as process 4711"):
        RunDirectory("c", tmp_path).claim("prefill", {"prefill"})
    other = RunDirectory("c", tmp_path).claim("decode", {"decode"})
    assert [found.pid for found in run_directory.find("c", tmp_path)] == [4711]
    other.close()
    first.close()


def test_several_clusters_must_be_named(tmp_path: Path) -> None:
    files = [RunDirectory(name, tmp_path).claim("all") for name in ("a", "b")]
    for file, name in zip(files, ("a", "b"), strict=True):
        file.write(state(name))
    with pytest.raises(UsageError, match="several clusters run here \\(a, b\\)"):
        run_directory.find(None, tmp_path)
    assert run_directory.find("b", tmp_path)[0].cluster == "b"
    for file in files:
        file.close()


def test_what_a_killed_supervisor_left_is_removed(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from mooncake_core.roles.run_directory import RunDirectory, StartState
file = RunDirectory("c", Path({str(tmp_path)!r})).claim("all")
file.write(StartState(cluster="c", selection="all", pid=1, config="", master_address="", gateway_url="",
                      key_file="", processes=[], ready=True))
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (tmp_path / "c" / "all.json").exists()
    assert run_directory.find("c", tmp_path) == []
    assert not (tmp_path / "c" / "all.json").exists()


def test_the_root_is_private_and_per_user() -> None:
    assert run_directory.runtime_root({"XDG_RUNTIME_DIR": "/run/user/5"}) == Path("/run/user/5/mooncake")
    assert run_directory.runtime_root({}).name.startswith("mooncake-")


def test_restarts_back_off_and_recover() -> None:
    policy = RestartPolicy()
    delays = [policy.delay_after(1.0) for _ in range(9)]
    assert delays[:3] == [0.2, 0.4, 0.8]
    assert delays[-1] == LONGEST_DELAY_S
    assert policy.delay_after(100.0) == 0.2
