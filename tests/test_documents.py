"""Documents that name things name things that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mooncake_cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_files_exist(path: Path) -> None:
    text = path.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    files = re.findall(r"`((?:configs|scripts|docs|core|backends|mooncake_cli|tests)/[\w./-]+)`", text)
    missing = [name for name in files if not (ROOT / name).exists()]
    missing += [name for name in links if not (path.parent / name).exists()]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(path: Path) -> None:
    named = set(re.findall(r"(?:^|`|/)mooncake ([a-z-]+)", path.read_text(), re.MULTILINE))
    assert named <= set(COMMANDS)


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if f"mooncake {name}" not in text] == []


def test_the_readme_names_every_area_of_acceptance() -> None:
    text = (ROOT / "README.md").read_text()
    areas = [path.stem.removeprefix("test_") for path in (ROOT / "tests" / "acceptance").glob("test_*.py")]
    assert [area for area in areas if f"| `{area}` |" not in text] == []
