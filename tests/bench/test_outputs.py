"""Outputs, saved and compared."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mooncake_core.bench import outputs
from mooncake_core.bench.completions import Sample
from mooncake_core.errors import UsageError

PROMPTS = ["one", "two", "three"]
SAMPLES = [
    Sample(index=2, status=200, text="c", token_ids=[5]),
    Sample(index=0, status=200, text="abc", token_ids=[1, 2, 3]),
    Sample(index=1, status=200, text="b"),
]


def test_what_is_saved_is_loaded_in_the_order_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "outputs.jsonl"
    made = outputs.outputs_of(SAMPLES, PROMPTS)
    outputs.save(path, made)
    assert [output.index for output in made] == [0, 1, 2]
    assert outputs.load(path) == made
    outputs.check_prompts(path, made, PROMPTS)
    assert outputs.first_difference(made, made) is None


@pytest.mark.parametrize(
    ("index", "change", "named"),
    [
        (0, {"token_ids": [1, 9, 3]}, "request 0 differs from token 1 on: expected [2, 3], got [9, 3]"),
        (0, {"token_ids": [1, 2]}, "request 0 differs from token 2 on: expected [3], got []"),
        (0, {"token_ids": None, "text": "abX"}, "request 0 differs from character 2 on: expected 'c', got 'X'"),
        (1, {"text": "bb"}, "request 1 differs from character 1 on: expected '', got 'b'"),
        (2, {"error": "HTTP 503"}, "request 2 failed: HTTP 503"),
    ],
)
def test_the_first_difference_is_named(index: int, change: dict[str, object], named: str) -> None:
    expected = outputs.outputs_of(SAMPLES, PROMPTS)
    got = [*expected]
    got[index] = msgspec.structs.replace(got[index], **change)
    assert outputs.first_difference(expected, got) == named


def test_the_same_tokens_are_equal_whatever_the_text() -> None:
    expected = outputs.outputs_of(SAMPLES, PROMPTS)
    got = [msgspec.structs.replace(expected[0], text="other"), *expected[1:]]
    assert outputs.first_difference(expected, got) is None


def test_what_is_missing_or_failed_when_saved_is_a_difference() -> None:
    expected = outputs.outputs_of(SAMPLES, PROMPTS)
    assert outputs.first_difference(expected, expected[:2]) == "request 2 did not end"
    failed = [msgspec.structs.replace(expected[0], error="HTTP 500"), *expected[1:]]
    assert outputs.first_difference(failed, expected) == "request 0 failed: HTTP 500, when the outputs were saved"


def test_a_file_of_other_prompts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outputs.jsonl"
    made = outputs.outputs_of(SAMPLES, PROMPTS)
    with pytest.raises(UsageError, match="output 1 is that of another prompt"):
        outputs.check_prompts(path, made, ["one", "TWO", "three"])
    with pytest.raises(UsageError, match="has 3 outputs, this run has 2 requests"):
        outputs.check_prompts(path, made, PROMPTS[:2])


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outputs.jsonl"
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        outputs.load(path)
    path.write_text('{"index": 0, "prompt_hash": "x"}\nnonsense\n')
    with pytest.raises(UsageError, match=r"outputs.jsonl:2: expected a line of --save-outputs"):
        outputs.load(path)
