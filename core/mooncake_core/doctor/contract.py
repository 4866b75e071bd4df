"""What a check is: a function that looks at one thing of this machine and says what it found. Plugins add theirs as entry
points of `mooncake.checks`; a check changes nothing, takes a few seconds at most, and need not catch what it does not expect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from mooncake_core.config.schema import ClusterConfig
from mooncake_core.errors import MooncakeError


class State(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """Works, but not as well as it could, or not for long."""
    FAIL = "fail"
    """What the configuration asks for will not work here."""
    SKIP = "skip"
    """Not looked at, and why."""


class Finding(Struct, frozen=True):
    """One line of what a check says."""

    state: State
    found: str
    """What there is, and what was expected where it is not that."""
    fix: str = ""
    """What to do, as a command where there is one."""


class Subject(NamedTuple):
    """What is examined: this machine, for a cluster or for none in particular."""

    config: ClusterConfig | None = None
    root: Path = Path("/")
    """Where /proc and /sys are."""


def found_and_fix(error: MooncakeError) -> tuple[str, str]:
    """What an error says, and what to do, which follows a semicolon; empty where it does not say."""
    found, _, fix = error.message.partition("; ")
    return found, fix


Check = Callable[[Subject], Iterable[Finding]]


def ok(found: str) -> Finding:
    return Finding(State.OK, found)


def warn(found: str, fix: str) -> Finding:
    return Finding(State.WARN, found, fix)


def fail(found: str, fix: str) -> Finding:
    return Finding(State.FAIL, found, fix)


def skip(why: str, fix: str = "") -> Finding:
    return Finding(State.SKIP, why, fix)
