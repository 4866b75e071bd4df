"""The examples of the guides to transfers and to the P2P store run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDES = Path(__file__).parent.parent.parent / "docs" / "guide"
EXAMPLES = [
    example
    for name in ("transfer.md", "p2p.md")
    for example in re.findall(r"```python\n(.*?)```", (GUIDES / name).read_text(), re.DOTALL)
]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int) -> None:
    done = subprocess.run([sys.executable, "-c", EXAMPLES[number]], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
