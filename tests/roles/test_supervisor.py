"""A start that fails: which process is named, and with what code it ends. Processes are played."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mooncake_core.config.processes import processes
from mooncake_core.config.schema import ClusterConfig, MasterConfig
from mooncake_core.roles import supervisor
from mooncake_core.roles.parent import Boot
from mooncake_core.roles.run_directory import StateFile
from mooncake_core.roles.supervisor import Child, Supervisor

Part = tuple[float, str, int]
"""How long a process runs, what it says, and its exit code."""
ENDLESS: Part = (60.0, "", 0)


async def failed_start(folder: Path, parts: dict[str, Part], monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    """The exit code of a start whose processes do what their parts say, and its log."""

    class Player(Child):
        async def run_once(self, boot: Boot) -> int:
            seconds, says, code = parts.get(self.role, ENDLESS)
            if says:
                self._log(self.name, says)
            await asyncio.sleep(seconds)
            return code

    monkeypatch.setattr(supervisor, "Child", Player)
    for patience in ("DRAIN_S", "HURRY_S", "AFTER_DRAIN_S"):
        monkeypatch.setattr(supervisor, patience, 0.01)
    monkeypatch.setattr(supervisor, "MASTER_S", 1.0)
    lines: list[str] = []
    config = ClusterConfig(master=MasterConfig(port=7801))
    started = Supervisor(
        config,
        processes(config),
        state_file=StateFile(folder / "all.json"),
        selection="all",
        config_path="",
        log=lambda name, line: lines.append(f"{name} | {line}"),
        on_ready=lambda state: None,
    )
    return await started.run(), lines


async def test_where_the_master_cannot_start_that_ends_the_start_whoever_fails_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"master": (0.2, "error: a port is taken", 1), "prefill": (0.0, "error: turned away", 2)}
    code, lines = await failed_start(tmp_path, parts, monkeypatch)
    assert code == 1
    assert lines == [
        "master | error: a port is taken",
        "prefill | error: turned away",
        "master | could not start (exit code 1); ending the others",
    ]


async def test_a_master_that_says_nothing_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, lines = await failed_start(tmp_path, {"prefill": (0.0, "error: no memory", 2)}, monkeypatch)
    assert code == 2
    assert lines[-1] == "prefill | could not start (exit code 2); ending the others"


async def test_the_process_named_is_the_one_whose_error_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = "error: no such certificate"
    parts = {"prefill": (0.3, same, 2), "decode": (0.0, same, 2)}
    code, lines = await failed_start(tmp_path, parts, monkeypatch)
    assert code == 2
    assert lines == [
        f"prefill | {same}",
        "prefill | could not start (exit code 2); ending the others",
    ]
