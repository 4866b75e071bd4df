"""What `mooncake doctor` says of the files of transfer.tls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from mooncake_core.config.schema import ClusterConfig, TlsConfig, TransferConfig
from mooncake_core.doctor import Finding, State, Subject
from mooncake_core.transfer.contract import TlsFiles
from mooncake_tcp.doctor import check
from tests.transfer.certificates import Authority

Spoil = Callable[[TlsFiles, Path], dict[str, str]]


def findings(files: TlsFiles, **changed: str) -> list[Finding]:
    named = {"certificate": files.certificate, "key": files.key, "ca": files.ca, **changed}
    return list(check(Subject(ClusterConfig(transfer=TransferConfig(tls=TlsConfig(**named))))))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def member(authority: Authority, days: int = 100) -> TlsFiles:
    files = authority.member("host", days=days)
    Path(files.key).chmod(0o600)
    return files


def test_nothing_is_looked_at_without_tls() -> None:
    assert [finding.state for finding in check(Subject(ClusterConfig()))] == [State.SKIP]


def test_good_files(tmp_path: Path) -> None:
    authority = Authority(tmp_path, days=100)
    (found,) = findings(member(authority))
    assert found.state is State.OK
    assert "fits its key" in found.found


def missing(files: TlsFiles, folder: Path) -> dict[str, str]:
    return {"ca": str(folder / "nowhere.pem")}


def no_certificate(files: TlsFiles, folder: Path) -> dict[str, str]:
    return {"certificate": files.key}


def another_key(files: TlsFiles, folder: Path) -> dict[str, str]:
    return {"key": member(Authority(folder, "other")).key}


def with_a_passphrase(files: TlsFiles, folder: Path) -> dict[str, str]:
    path = folder / "secret.key"
    key = serialization.load_pem_private_key(Path(files.key).read_bytes(), None)
    kind, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(kind, form, serialization.BestAvailableEncryption(b"secret")))
    path.chmod(0o600)
    return {"key": str(path)}


def another_authority(files: TlsFiles, folder: Path) -> dict[str, str]:
    return {"ca": Authority(folder, "stranger").ca}


def no_authority(files: TlsFiles, folder: Path) -> dict[str, str]:
    return {"ca": files.certificate}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (missing, "transfer.tls.ca: expected a file in PEM format, there is none at"),
        (no_certificate, "is no certificate in PEM format"),
        (another_key, "is not the key of"),
        (with_a_passphrase, "is no private key in PEM format without a passphrase"),
        (another_authority, "is not vouched for by"),
        (no_authority, "is no authority's certificate"),
    ],
)
def test_what_is_wrong_is_named_with_a_fix(authority: Authority, tmp_path: Path, spoil: Spoil, said: str) -> None:
    files = member(authority)
    (found,) = findings(files, **spoil(files, tmp_path))
    assert found.state is State.FAIL
    assert said in found.found
    assert found.fix


@pytest.mark.parametrize(("days", "state", "said"), [(-1, State.FAIL, "has expired"), (3, State.WARN, "is good until")])
def test_time_runs_out(authority: Authority, days: int, state: State, said: str) -> None:
    (found,) = findings(member(authority, days=days))
    assert (found.state, said in found.found) == (state, True)


def test_an_expired_authority(tmp_path: Path) -> None:
    (found,) = findings(member(Authority(tmp_path, days=-1)))
    assert found.state is State.FAIL
    assert "the authority in" in found.found


def test_a_key_that_others_may_read_is_a_warning(authority: Authority) -> None:
    files = member(authority)
    Path(files.key).chmod(0o644)
    (open_key,) = [finding for finding in findings(files) if "transfer.tls.key" in finding.found]
    assert (open_key.state, open_key.fix) == (State.WARN, f"chmod 600 {files.key}")
