"""What a load's requests generated, saved and compared: JSON lines, one per request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from mooncake_core import whole_file
from mooncake_core.bench.completions import Sample
from mooncake_core.bench.workload import prompt_hash
from mooncake_core.errors import UsageError

SHOWN_CHARACTERS = 60


class Output(Struct, frozen=True, kw_only=True):
    """What one request generated, or why it did not."""

    index: int
    prompt_hash: str
    text: str = ""
    token_ids: list[int] | None = None
    """None from servers that do not tell."""
    error: str = ""


def outputs_of(samples: Iterable[Sample], prompts: Sequence[str]) -> list[Output]:
    """By index."""
    return [
        Output(
            index=sample.index,
            prompt_hash=prompt_hash(prompts[sample.index]),
            text=sample.text,
            token_ids=sample.token_ids,
            error=sample.error,
        )
        for sample in sorted(samples, key=lambda sample: sample.index)
    ]


def save(path: Path, outputs: Iterable[Output]) -> None:
    """Writes a file of outputs."""
    whole_file.write(path, b"".join(msgspec.json.encode(output) + b"\n" for output in outputs))


def load(path: Path) -> list[Output]:
    """Reads a file of outputs.

    Raises:
        UsageError: it cannot be read, or a line of it is no output.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    outputs = []
    for number, line in enumerate(lines, 1):
        try:
            outputs.append(msgspec.json.decode(line, type=Output))
        except msgspec.MsgspecError as error:
            raise UsageError(f"{path}:{number}: expected a line of --save-outputs: {error}") from error
    return outputs


def check_prompts(path: Path, expected: Sequence[Output], prompts: Sequence[str]) -> None:
    """Whether a file's outputs are those of these prompts.

    Raises:
        UsageError: they are of others; names the first.
    """
    if len(expected) != len(prompts):
        raise UsageError(f"{path} has {len(expected)} outputs, this run has {len(prompts)} requests: give --requests")
    for index, (output, prompt) in enumerate(zip(expected, prompts, strict=True)):
        if (output.index, output.prompt_hash) != (index, prompt_hash(prompt)):
            raise UsageError(
                f"{path}: output {index} is that of another prompt: give the same --seed, --requests, "
                "--prompt-tokens and --shared-prefix as when it was saved, and a model of the same tokenizer"
            )


def first_difference(expected: Sequence[Output], got: Sequence[Output]) -> str | None:
    """Names the first request whose output is not the expected one; None when all agree."""
    by_index = {output.index: output for output in got}
    for wanted in expected:
        found = by_index.get(wanted.index)
        if found is None:
            return f"request {wanted.index} did not end"
        if found.error or wanted.error:
            return f"request {wanted.index} failed: {found.error or f'{wanted.error}, when the outputs were saved'}"
        if (difference := _difference(wanted, found)) is not None:
            return f"request {wanted.index} differs {difference}"
    return None


def _difference(wanted: Output, found: Output) -> str | None:
    """Where two outputs part; by token where both have tokens."""
    if wanted.token_ids is not None and found.token_ids is not None:
        at = _first_unequal(wanted.token_ids, found.token_ids)
        if at is None:
            return None
        return f"from token {at} on: expected {wanted.token_ids[at : at + 5]}, got {found.token_ids[at : at + 5]}"
    at = _first_unequal(wanted.text, found.text)
    if at is None:
        return None
    end = at + SHOWN_CHARACTERS
    return f"from character {at} on: expected {wanted.text[at:end]!r}, got {found.text[at:end]!r}"


def _first_unequal(first: Sequence[object], second: Sequence[object]) -> int | None:
    for at, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return at
    return None if len(first) == len(second) else min(len(first), len(second))
