"""Two distributions that own the import name `mooncake` are named, whichever came last."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

from mooncake_core.installation import DROPIN, conflict

UPSTREAM = "mooncake-transfer-engine-non-cuda"


def install(folder: Path, name: str, *files: str) -> None:
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("")


def found(*folders: Path) -> str:
    return conflict(distributions(path=[str(folder) for folder in folders]))


def test_the_dropin_alone_is_no_conflict(tmp_path: Path) -> None:
    install(tmp_path, DROPIN, "mooncake/__init__.py", "mooncake/store.py")
    install(tmp_path, "torch", "torch/__init__.py", "torch/mooncake/x.py")
    assert found(tmp_path) == ""


def test_upstream_alone_is_no_conflict(tmp_path: Path) -> None:
    install(tmp_path, UPSTREAM, "mooncake/__init__.py", "mooncake/store.so")
    assert found(tmp_path) == ""


def test_both_in_one_folder_are_named_with_the_fix(tmp_path: Path) -> None:
    install(tmp_path, UPSTREAM, "mooncake/__init__.py", "mooncake/store.so")
    install(tmp_path, DROPIN, "mooncake/__init__.py", "mooncake/store.py")
    text = found(tmp_path)
    assert f"{DROPIN} 1.0 and {UPSTREAM} 1.0 are both installed" in text
    assert f"pip uninstall -y {UPSTREAM} {DROPIN}" in text


def test_both_in_folders_of_their_own_are_no_conflict(tmp_path: Path) -> None:
    install(tmp_path / "a", DROPIN, "mooncake/__init__.py")
    install(tmp_path / "b", UPSTREAM, "mooncake/__init__.py")
    assert found(tmp_path / "a", tmp_path / "b") == ""


def test_files_that_went_with_the_other_one_are_missed(tmp_path: Path) -> None:
    install(tmp_path, DROPIN, "mooncake/__init__.py", "mooncake/store.py")
    (tmp_path / "mooncake" / "__init__.py").unlink()
    assert "mooncake/__init__.py" in found(tmp_path)
    assert "--force-reinstall" in found(tmp_path)


def test_here_there_is_none() -> None:
    assert conflict() == ""
