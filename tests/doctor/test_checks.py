"""What the checks say of machines that lack something."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from mooncake_cli import exits, main
from mooncake_core import registry
from mooncake_core.config.schema import (
    ClusterConfig,
    InstanceConfig,
    MasterConfig,
    NodeConfig,
    StoreConfig,
    TierConfig,
    TransferConfig,
)
from mooncake_core.doctor import Finding, State, Subject, ok
from mooncake_core.doctor.checks import clock, limits, memory, plugins, ports, versions
from mooncake_core.doctor.examination import examine
from mooncake_core.errors import PluginUnavailable
from mooncake_nvme import doctor as lmdb_doctor
from mooncake_object import doctor as fsspec_doctor

GIB = 1 << 30


def states(findings: Iterable[Finding]) -> list[State]:
    return [finding.state for finding in findings]


def config(*, tiers: list[TierConfig] | None = None, **sections: Any) -> ClusterConfig:
    """One store of 1 GiB, and nothing else that takes memory."""
    stores = [StoreConfig(capacity=GIB, tiers=tiers or [])]
    return ClusterConfig(**{"store": stores, "prefill": [], "decode": [], **sections})


def machine(tmp_path: Path, *, available_bytes: int = 64 * GIB, mounts: str = "") -> Path:
    """A root with a /proc that says so."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemAvailable: {available_bytes // 1024} kB\n")
    (tmp_path / "proc/self/mounts").write_text(mounts or "disk / ext4 rw 0 0\n")
    return tmp_path


@pytest.mark.parametrize(("available_bytes", "state"), [(7 * GIB, State.FAIL), (8 * GIB, State.OK)])
def test_memory_counts_nodes_and_engines_of_this_machine(tmp_path: Path, available_bytes: int, state: State) -> None:
    here = InstanceConfig(count=2, local_node=NodeConfig(capacity=3 * GIB))
    wanted = config(prefill=[here], decode=[InstanceConfig(host="192.0.2.1", count=100)])
    (found,) = memory.check(Subject(wanted, machine(tmp_path, available_bytes=available_bytes)))
    assert found.state is state
    assert "take 7.5GiB" in found.found


def test_a_port_that_somebody_has_is_named_and_how_to_find_out_who() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        found = list(ports.check(Subject(config(master=MasterConfig(port=port, admin_port=None)))))
    wrong = [finding for finding in found if finding.state is State.FAIL]
    assert [finding.found for finding in wrong] == [f"master.port: 127.0.0.1 port {port} is in use by another process"]
    assert f"sport = :{port}" in wrong[0].fix


@pytest.mark.parametrize(
    ("host", "state"), [("192.0.2.1", State.SKIP), ("999.1.1.1", State.FAIL), ("0.0.0.0", State.OK)]
)
def test_hosts_are_this_machine_another_or_nowhere(host: str, state: State) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = ports.check(Subject(config(master=MasterConfig(host=host, port=port, admin_port=None))))
    assert [finding.state for finding in found if finding.found.startswith("master.port")] == [state]


def test_the_ports_of_local_nodes_are_looked_at_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        instance = InstanceConfig(local_node=NodeConfig(capacity=GIB, metrics_port=port))
        wanted = config(prefill=[instance], master=MasterConfig(port=0, admin_port=None))
        (wrong,) = [finding for finding in ports.check(Subject(wanted)) if finding.state is State.FAIL]
    assert wrong.found == f"prefill[0].local_node.metrics_port: 127.0.0.1 port {port} is in use by another process"


def test_a_name_that_nobody_has_is_complained_about_by_one_check() -> None:
    nowhere = "999.1.1.1"
    members = {"store": [StoreConfig(host=nowhere)], "prefill": [InstanceConfig(host=nowhere)]}
    wrong = {name for name, found in examine(Subject(config(**members))) if found.state is State.FAIL}
    assert wrong == {"ports"}


@pytest.mark.parametrize(
    ("mounts", "tier", "state"),
    [
        ("", {"capacity": GIB, "reserve": 0}, State.OK),
        ("", {"capacity": 1 << 60}, State.WARN),
        ("m {path} tmpfs rw 0 0", {"capacity": 1 << 20, "reserve": 0}, State.WARN),
        ("m {path} nfs4 rw 0 0", {"capacity": 1 << 20, "reserve": 0}, State.FAIL),
        ("m {path} nfs4 rw 0 0\nover {path} ext4 rw 0 0", {"capacity": 1 << 20, "reserve": 0}, State.OK),
    ],
)
def test_a_folder_for_lmdb_wants_a_local_disk_with_room(
    tmp_path: Path, mounts: str, tier: dict[str, Any], state: State
) -> None:
    root = machine(tmp_path, mounts="disk / ext4 rw 0 0\n" + mounts.format(path=tmp_path.resolve()))
    tiers = [TierConfig(path=str(tmp_path / "not" / "there"), **tier)]
    assert states(lmdb_doctor.check(Subject(config(tiers=tiers), root))) == [state]
    assert not (tmp_path / "not").exists()


def test_what_a_tier_has_taken_counts_as_room_for_it(tmp_path: Path) -> None:
    free = lmdb_doctor._used(tmp_path)
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "objects.data").write_bytes(b"x" * 100_000)
    assert lmdb_doctor._used(tmp_path) - free >= 100_000


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (found,) = lmdb_doctor.check(Subject(config(tiers=[TierConfig(path="/proc/self/tiers")]), machine(tmp_path)))
    assert found.state is State.FAIL
    assert "/proc/self" in found.found


def test_a_url_is_listed(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    urls = {f"file://{tmp_path}": State.OK, f"file://{tmp_path}/new": State.OK, "nowhere://x": State.FAIL}
    tiers = [TierConfig(kind="fsspec", path=url) for url in urls]
    found = list(fsspec_doctor.check(Subject(config(tiers=tiers))))
    assert states(found) == list(urls.values())
    assert "1 entries" in found[0].found


def test_a_plugin_that_the_configuration_names_must_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(kind: str, name: str) -> object:
        if name in ("tcp", "shm"):
            raise PluginUnavailable(f"{kind} {name} is not available: no such thing")
        return object()

    monkeypatch.setattr(registry, "load", load)
    found = list(plugins.check(Subject(config(transfer=TransferConfig(transports=["tcp"])))))
    assert [finding.state for finding in found if "transport tcp" in finding.found] == [State.FAIL]
    assert [finding.state for finding in found if "transport shm" in finding.found] == [State.SKIP]
    spared = TransferConfig(transports=["shm", "tcp"], optional=["tcp"])
    found = list(plugins.check(Subject(config(transfer=spared))))
    assert [finding.state for finding in found if "transport tcp" in finding.found] == [State.SKIP]


@pytest.mark.parametrize(
    ("requirement", "installed", "said"),
    [
        ("click>=8.1", "8.2", ""),
        ("click>=8.1", "8.0", "expected click>=8.1, found 8.0"),
        ("click>=8.1", None, "expected click>=8.1, found none"),
        ('torch>=2.6; extra == "serve"', None, ""),
        ('torch>=2.6; extra == "serve"', "2.5", "expected torch>=2.6, found 2.5"),
        ('colorama>=9; sys_platform == "win32" and extra == "serve"', "1.0", ""),
    ],
)
def test_versions(monkeypatch: pytest.MonkeyPatch, requirement: str, installed: str | None, said: str) -> None:
    def version(name: str) -> str:
        if name == versions.PROJECT:
            return "0.1.0"
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(versions, "requires", lambda _: [requirement])
    monkeypatch.setattr(versions, "version", version)
    monkeypatch.setattr(versions, "conflict", lambda: "")
    found = [finding for finding in versions.check(Subject()) if finding.state is not State.OK]
    assert [finding.found for finding in found] == ([said] if said else [])


def test_few_open_files_are_a_warning_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (1024, 20000))
    (found,) = limits.check(Subject())
    assert (found.state, found.fix) == (State.WARN, "ulimit -n 4096")


def test_the_clock_is_asked_and_not_changed() -> None:
    (found,) = clock.check(Subject())
    assert found.state in (State.OK, State.WARN, State.SKIP)


def raises(subject: Subject) -> Iterable[Finding]:
    raise ValueError("odd")


def says_ok(subject: Subject) -> Iterable[Finding]:
    return [ok("fine")]


def test_a_broken_check_costs_its_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    checks: dict[str, Callable[[Subject], Iterable[Finding]]] = {"broken": raises, "good": says_ok}
    monkeypatch.setattr("mooncake_core.doctor.examination.names", lambda: list(checks))
    monkeypatch.setattr(registry, "load", lambda kind, name: checks[name])
    found = dict(examine(Subject()))
    assert (found["broken"].state, found["good"].state) == (State.FAIL, State.OK)
    assert "ValueError: odd" in found["broken"].found


def test_a_library_that_a_check_lacks_is_wrong_only_where_a_plugin_of_that_name_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(kind: str, name: str) -> object:
        raise PluginUnavailable(
            "check lmdb is not available: No module named 'lmdb'; pip install 'mooncake-toolkit[nvme]'"
        )

    monkeypatch.setattr(registry, "load", load)
    wants = config(tiers=[TierConfig(path="/ssd")])
    for subject, state in ((None, State.SKIP), (config(), State.SKIP), (wants, State.FAIL)):
        ((_, found),) = examine(Subject(subject), ["lmdb"])
        assert found == Finding(
            state, "check lmdb is not available: No module named 'lmdb'", "pip install 'mooncake-toolkit[nvme]'"
        )


def test_the_command_fails_when_something_will_not_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "master: {port: 0, admin_port: null}\ngateway: {port: 0}\nprefill: []\ndecode: []\nstore: [{capacity: 1KiB}]\n"
    )
    assert main.run(["doctor", "-c", str(file), "--json", "memory", "ports"]) == exits.DONE
    assert {row["state"] for row in json.loads(capsys.readouterr().out)["findings"]} <= {"ok"}
    file.write_text("master: {prot: 0}\n")
    assert main.run(["doctor", "-c", str(file), "memory"]) == exits.FAILED
    assert "prot" in capsys.readouterr().out
    assert main.run(["doctor", "heart"]) == exits.USAGE
