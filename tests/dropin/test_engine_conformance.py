"""What upstream's `mooncake.engine` answers, ours answers: every case, here. `scripts/acceptance conformance` runs the same
cases with upstream's own wheel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dropin.engine_cases import EVERY
from tests.dropin.engine_cases.world import CASES, World

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]
GUIDE = Path(__file__).parent.parent.parent / "docs" / "guide" / "dropin.md"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World(upstream=False)
    yield world
    world.close()


@pytest.mark.parametrize("name", CASES)
def test_case(world: World, name: str) -> None:
    case = CASES[name]
    try:
        case.run(world, *case.row)
    finally:
        world.empty()


def test_there_are_enough_cases() -> None:
    assert EVERY
    assert len(CASES) >= 120


def test_every_difference_is_in_the_guide() -> None:
    text = GUIDE.read_text()
    assert {case.differs for case in CASES.values() if case.differs and case.differs not in text} == set()
