"""A tier whose library is missing says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
sys.modules[sys.argv[1]] = None
from importlib.metadata import EntryPoint
from mooncake_core import registry
registry.installed = lambda kind: [EntryPoint("this", sys.argv[2], "mooncake.tiers")]
try:
    registry.load("tier", "this")
except registry.PluginUnavailable as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("library", "target", "extra"),
    [("lmdb", "mooncake_nvme:LmdbTier", "nvme"), ("fsspec", "mooncake_object:FsspecTier", "object")],
)
def test_what_to_install_is_said(library: str, target: str, extra: str) -> None:
    command = [sys.executable, "-c", SCRIPT, library, target]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("tier this is not available: ")
    assert f"pip install 'mooncake-toolkit[{extra}]'" in said
