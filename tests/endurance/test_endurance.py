"""A random game with a real cluster: ENDURANCE_SECONDS long, from ENDURANCE_SEED on; run with -m acceptance."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from tests.endurance.playing import play

pytestmark = [pytest.mark.cluster, pytest.mark.acceptance]  # seed 100 fails, and it is not known yet why
SECONDS = float(os.environ.get("ENDURANCE_SECONDS", "5"))


@pytest.mark.parametrize("kind", ["plain", "tight", "tiered"])
def test_nothing_is_wrong_or_lost_or_left_while_processes_die(kind: str, tmp_path: Path) -> None:
    first_seed = int(os.environ.get("ENDURANCE_SEED", secrets.randbelow(1 << 20)))
    print(f"\n{play(kind, tmp_path / kind, first_seed, SECONDS)}")
