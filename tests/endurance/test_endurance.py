"""A random game with a real cluster whose processes die: a little of it, always the same. tests/acceptance plays on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.endurance.playing import play

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
SECONDS = float(os.environ.get("ENDURANCE_SECONDS", "20"))
SEED = int(os.environ.get("ENDURANCE_SEED", "100"))


@pytest.mark.parametrize("kind", ["plain", "tight", "tiered"])
def test_nothing_is_wrong_or_lost_or_left_while_processes_die(kind: str, tmp_path: Path) -> None:
    print(f"\n{play(kind, tmp_path / kind, SEED, SECONDS)}")
