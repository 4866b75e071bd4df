"""Where pyverbs comes from. PyPI's is built on the machine against rdma-core's headers; a distribution's is ready made, and lies
where a virtual environment of the same Python does not look."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mooncake_core.errors import PluginUnavailable

DEBIAN: Final = "usr/lib/python3/dist-packages"
OTHERS: Final = "usr/lib64/python3.*/site-packages"
"""Of Fedora, RHEL and its rebuilds, SUSE: a folder for each Python that was packed."""


def distribution_places(root: Path = Path("/")) -> list[Path]:
    """Where packages of a distribution put modules for its own Pythons."""
    return [root / DEBIAN, *sorted(root.glob(OTHERS))]


def make_pyverbs_importable(places: Sequence[Path] | None = None) -> None:
    """Lets `import pyverbs.device` succeed; of the places, nothing but the folder `pyverbs` becomes visible.

    Raises:
        PluginUnavailable: there is none, or it does not load; says what to install.
    """
    if importlib.util.find_spec("pyverbs") is None:
        _show(find_pyverbs(distribution_places() if places is None else places))
    try:
        importlib.import_module("pyverbs.device")
    except ImportError as error:  # libibverbs is missing, or is of another version
        raise _unavailable(f"pyverbs does not load ({error})") from error


def find_pyverbs(places: Sequence[Path]) -> Path:
    """The folder of a pyverbs that was made for this Python.

    Raises:
        PluginUnavailable: there is none; says for which Python there is one.
    """
    abi = sysconfig.get_config_var("SOABI")
    others: list[str] = []
    for place in places:
        if (place / f"pyverbs/device.{abi}.so").exists():
            return place / "pyverbs"
        others += [path.name.split(".")[1] for path in place.glob("pyverbs/device.*.so")]
    if others:
        raise _unavailable(f"the distribution's pyverbs is for {', '.join(others)}, this Python is {abi}")
    raise _unavailable("pyverbs was not found")


def _show(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        "pyverbs", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pyverbs"] = module
    spec.loader.exec_module(module)


def _unavailable(reason: str) -> PluginUnavailable:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return PluginUnavailable(
        f"transport rdma is not available: {reason}. Debian, Ubuntu: apt-get install python3-pyverbs ibverbs-providers; "
        "Fedora, RHEL: dnf install python3-pyverbs libibverbs; SUSE: zypper install python3-pyverbs libibverbs; it is found "
        f"from a virtual environment of the distribution's own Python too (this is {version}). For another Python install "
        "rdma-core with its headers, then pip install 'mooncake-toolkit[rdma]'",
        kind="transport",
        name="rdma",
    )
