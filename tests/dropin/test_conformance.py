"""What upstream's `mooncake.store` answers, ours answers: every case, here. `scripts/acceptance conformance` runs the same
cases with upstream's own wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.upstream import check
from tests.dropin.cases import EVERY
from tests.dropin.cases.world import CASES, World
from tests.dropin.casework import Case

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]
GUIDE = Path(__file__).parent.parent.parent / "docs" / "guide" / "dropin.md"


@pytest.mark.parametrize("name", CASES)
def test_case(world: World, name: str) -> None:
    case = CASES[name]
    case.run(world, *case.row)


def test_a_case_that_was_not_run_is_no_difference() -> None:
    cases = {"case": Case("case", lambda world: None, (), differs="a line of the guide")}
    check(cases, {"case": "AssertionError"}, "case")
    with pytest.raises(AssertionError, match="not run"):
        check(cases, {}, "case")
    with pytest.raises(AssertionError, match="no difference any more"):
        check(cases, {"case": ""}, "case")


def test_there_are_enough_cases() -> None:
    assert EVERY
    assert len(CASES) >= 150


def test_every_difference_is_in_the_guide() -> None:
    text = GUIDE.read_text()
    assert [case.differs for case in CASES.values() if case.differs and case.differs not in text] == []
