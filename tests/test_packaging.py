"""What would be installed, and whether the lists of packages agree with the folders."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_has_every_tracked_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *packages],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    prefixes = {package: package.rpartition("/")[0] for package in packages}
    expected = set()
    for name in listed.stdout.splitlines():
        prefix = next(prefix for package, prefix in prefixes.items() if name.startswith(package + "/"))
        expected.add(name.removeprefix(prefix + "/") if prefix else name)
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert "mooncake_core/demo_model/model.safetensors" in found


def test_type_checkers_of_others_may_use_our_types(wheel: zipfile.ZipFile) -> None:
    packages = {name.partition("/")[0] for name in wheel.namelist() if name.endswith("/__init__.py")}
    assert {f"{package}/py.typed" for package in packages} <= set(wheel.namelist())


def test_the_top_level_is_ours_alone(wheel: zipfile.ZipFile) -> None:
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "mooncake_cli",
        "mooncake_core",
        "mooncake_nvme",
        "mooncake_object",
        "mooncake_rdma",
        "mooncake_shm",
        "mooncake_tcp",
    }


def test_every_backend_with_a_package_is_named_everywhere() -> None:
    tool = PROJECT["tool"]
    folders = [path for path in sorted((ROOT / "backends").iterdir()) if list(path.glob("mooncake_*/__init__.py"))]
    assert folders
    for folder in folders:
        root = f"backends/{folder.name}"
        assert root in tool["hatch"]["build"]["dev-mode-dirs"]
        assert f"{root}/mooncake_{folder.name}" in tool["hatch"]["build"]["targets"]["wheel"]["packages"]
        assert root in tool["ruff"]["src"]
        assert root in tool["mypy"]["mypy_path"]
        assert root in tool["pyright"]["extraPaths"]
        assert f"mooncake_{folder.name}" in tool["importlinter"]["root_packages"]


def test_the_dropin_is_a_distribution_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT / "dropin")]
    subprocess.run(command, check=True, capture_output=True)  # an sdist, and a wheel from it
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    names = wheel.namelist()
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "mooncake"],
        cwd=ROOT / "dropin",
        check=True,
        capture_output=True,
        text=True,
    )
    assert {name for name in names if ".dist-info/" not in name} == set(listed.stdout.splitlines())
    assert {"mooncake/store.py", "mooncake/py.typed"} <= set(names)
    (license_name,) = [name for name in names if name.endswith("/LICENSE")]
    assert wheel.read(license_name) == (ROOT / "LICENSE").read_bytes()
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as sdist:
        assert [name for name in sdist.getnames() if name.endswith("/LICENSE")]
