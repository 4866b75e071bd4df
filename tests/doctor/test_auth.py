"""What `mooncake doctor` says of the cluster key."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from mooncake_core.config.schema import AuthConfig, ClusterConfig
from mooncake_core.doctor import Finding, State, Subject
from mooncake_core.doctor.checks import auth
from mooncake_core.wire.auth import ClusterKey

ROOT = Path(__file__).parent.parent.parent


def finding(key_file: Path | str) -> Finding:
    (found,) = auth.check(Subject(ClusterConfig(auth=AuthConfig(key_file=str(key_file)))))
    return found


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    ClusterKey.generate().write(tmp_path / "cluster.key")
    return tmp_path / "cluster.key"


def test_nothing_is_looked_at_without_auth() -> None:
    states = [finding.state for config in (None, ClusterConfig()) for finding in auth.check(Subject(config))]
    assert states == [State.SKIP, State.SKIP]


def test_a_good_key(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert finding(key_file).state is State.OK
    monkeypatch.setenv("MOONCAKE_KEY_FILE", str(key_file))
    assert finding("").state is State.OK


def test_a_key_that_is_missing_is_said_and_who_writes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOONCAKE_KEY_FILE", raising=False)
    found = finding(tmp_path / "nowhere")
    assert found.state is State.FAIL
    assert found.found == f"auth.key_file: cannot read the cluster key {tmp_path}/nowhere: No such file or directory"
    assert found.fix == "`mooncake auth init` writes one"
    assert (finding("").state, finding("").fix) == (State.FAIL, "`mooncake auth init` writes a key")


def test_a_key_that_others_can_read_is_said_with_the_command(key_file: Path) -> None:
    key_file.chmod(0o644)
    found = finding(key_file)
    assert (found.state, found.fix) == (State.FAIL, f"chmod 600 {key_file}")
    assert "can be read by others (mode 644)" in found.found


def test_what_is_no_key_is_said(key_file: Path) -> None:
    key_file.write_text("{}")
    found = finding(key_file)
    assert (found.state, found.fix) == (State.FAIL, "copy it from another host of the cluster")


def test_the_doctor_knows_the_check() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["mooncake.checks"]["auth"] == f"{auth.__name__}:check"
