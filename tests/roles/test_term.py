"""Terms grow."""

from __future__ import annotations

from pathlib import Path

from mooncake_core.roles.master.term import IDS_PER_TERM, next_term


def test_terms_follow_the_clock_and_grow_when_it_is_set_back(tmp_path: Path) -> None:
    file = tmp_path / "cluster" / "term"
    assert next_term(file, 1000) == 1000
    assert next_term(file, 2000) == 2000
    assert next_term(file, 500) == 2000 + IDS_PER_TERM
    assert next_term(file, 3000) == 2000 + 2 * IDS_PER_TERM
    now_us = 9 * IDS_PER_TERM
    assert next_term(file, now_us) == now_us


def test_a_damaged_file_is_as_none(tmp_path: Path) -> None:
    file = tmp_path / "term"
    file.write_text("?")
    assert next_term(file, 7) == 7
