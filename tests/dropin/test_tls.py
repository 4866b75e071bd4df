"""A cluster whose data connections speak TLS: programs take part with a certificate, and are told what they lack without."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mooncake.engine import TransferEngine
from mooncake.store import MooncakeDistributedStore
from mooncake_cli.options import find_running
from mooncake_core.testing.cluster import as_json
from mooncake_core.transfer.contract import TlsFiles
from tests.dropin.conftest import running_master
from tests.transfer.certificates import Authority

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]
MIB = 1 << 20
VARIABLES = ("MOONCAKE_TLS_CERTIFICATE", "MOONCAKE_TLS_KEY", "MOONCAKE_TLS_CA")

NODE = """
cluster: dropin
prefill: []
decode: []
master: {port: %s}
store: [{name: node, capacity: 64MiB}]
transfer: {tls: {certificate: %s, key: %s, ca: %s}, weights: {127.0.0.0/8: 2}}
"""


@contextlib.contextmanager
def running_node(folder: Path, master: str, tls: TlsFiles) -> Iterator[None]:
    """A store role that speaks TLS."""
    config = folder / "node.yaml"
    config.write_text(NODE % (master.rpartition(":")[2], tls.certificate, tls.key, tls.ca))
    command = [sys.executable, "-m", "mooncake_cli.main", "start", "--role", "store", "-c", str(config)]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    started = subprocess.run([*command, "--detach", "--json"], env=environ, capture_output=True, text=True, timeout=60)
    assert started.returncode == 0, started.stderr
    assert as_json(started)["tls"] == {"certificate": tls.certificate, "key": tls.key, "ca": tls.ca}
    yield


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the run directory."""
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def master(folder: Path, authority: Authority) -> Iterator[str]:
    """With a node that speaks TLS."""
    with running_master(folder) as address, running_node(folder, address, authority.member("node")):
        yield address


@pytest.fixture(autouse=True)
def over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory needs no TLS, and would hide what is tested."""
    monkeypatch.setenv("MC_FORCE_TCP", "1")
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def set_files(monkeypatch: pytest.MonkeyPatch, files: TlsFiles) -> None:
    for variable, file in zip(VARIABLES, (files.certificate, files.key, files.ca), strict=True):
        monkeypatch.setenv(variable, file)


def connect(master: str, segment_bytes: int = 0, **given: Any) -> Any:
    store = MooncakeDistributedStore()
    assert store.setup({"global_segment_size": segment_bytes, "master_server_address": master, **given}) == 0
    return store


def test_a_store_with_a_certificate_puts_and_gets(
    master: str, authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = authority.member("program")
    by_argument = connect(master, tls_certificate=files.certificate, tls_key=files.key, tls_ca=files.ca)
    value = os.urandom(MIB)
    assert by_argument.put("key", value) == 0
    by_argument.close()

    stranger = connect(master)
    assert stranger.get("key") == b""
    assert "speaks TLS only: set transfer.tls here too (drop-in: MOONCAKE_TLS_CERTIFICATE" in caplog.text
    stranger.close()

    set_files(monkeypatch, files)
    monkeypatch.setenv("MOONCAKE_WEIGHTS", '{"127.0.0.0/8": 2}')
    by_environment = connect(master)
    assert by_environment.get("key") == value
    by_environment.close()


def test_a_segment_of_a_store_speaks_it_too(master: str, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    set_files(monkeypatch, authority.member("contributes"))
    owner, other = connect(master, 16 * MIB), connect(master)
    assert owner.put("in a segment", b"value" * 1000) == 0
    assert other.get("in a segment") == b"value" * 1000
    owner.close()
    other.close()


def test_what_is_missing_is_named(
    master: str, authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_files(monkeypatch, authority.member("forgetful"))
    monkeypatch.delenv("MOONCAKE_TLS_KEY")
    assert MooncakeDistributedStore().setup("127.0.0.1", "P2PHANDSHAKE", 0, MIB, "tcp", "", master) == -600
    assert "there is no MOONCAKE_TLS_KEY: name all of them" in caplog.text
    assert TransferEngine().initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == -101
    monkeypatch.setenv("MOONCAKE_TLS_KEY", "/nowhere")
    assert MooncakeDistributedStore().setup("127.0.0.1", "P2PHANDSHAKE", 0, MIB, "tcp", "", master) == -600
    assert "/nowhere" in caplog.text


def test_weights_that_are_none(master: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MOONCAKE_WEIGHTS", '{"127.0.0.0/8": -1}')
    assert MooncakeDistributedStore().setup("127.0.0.1", "P2PHANDSHAKE", 0, MIB, "tcp", "", master) == -600
    assert "MOONCAKE_WEIGHTS: expected JSON as" in caplog.text


def test_engines_speak_it_with_each_other(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def engine() -> Any:
        made = TransferEngine()
        assert made.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
        return made

    set_files(monkeypatch, authority.member("one"))
    near, far = engine(), engine()
    there, here = far.allocate_managed_buffer(4096), near.allocate_managed_buffer(4096)
    near.write_bytes_to_buffer(here, "moved", 5)
    name = f"127.0.0.1:{far.get_rpc_port()}"
    assert near.transfer_sync_write(name, here, there, 5) == 0
    assert far.read_bytes_from_buffer(there, 5) == b"moved"
    for variable in VARIABLES:
        monkeypatch.delenv(variable)
    plain = engine()
    assert plain.transfer_sync_read(name, plain.allocate_managed_buffer(4096), there, 5) != 0
    assert "speaks TLS only" in caplog.text


def test_commands_know_the_clusters_files(
    master: str, folder: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    for running in (find_running(folder / "node.yaml", (), None), find_running(None, (), "dropin")):
        assert running.tls is not None
        assert Path(running.tls.certificate).name == "authority-node.pem"
        assert dict(running.weights) == {"127.0.0.0/8": 2}
