"""Twenty minutes of a random user and of dying processes: no wrong byte, nothing lost that lives, nothing left over."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.endurance.playing import play

pytestmark = [pytest.mark.cluster, pytest.mark.acceptance, pytest.mark.timeout(900)]
SECONDS = 400.0


@pytest.mark.parametrize("kind", ["plain", "tight", "tiered"])
def test_nothing_is_wrong_or_lost_or_left_for_twenty_minutes(kind: str, tmp_path: Path) -> None:
    print(f"\n{play(kind, tmp_path / kind, secrets.randbelow(1 << 20), SECONDS)}")
