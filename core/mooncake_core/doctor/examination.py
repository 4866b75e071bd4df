"""Runs the checks, each for itself: one that is broken costs its own line and no other."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from mooncake_core import registry
from mooncake_core.doctor.contract import Finding, Subject, fail, ok
from mooncake_core.errors import MooncakeError, UsageError


def names() -> list[str]:
    """Of all checks that are installed."""
    return [entry.name for entry in registry.installed("check")]


def examine(subject: Subject, only: Collection[str] = ()) -> Iterator[tuple[str, Finding]]:
    """What each check says, with its name; only those that are named, if any are.

    Raises:
        UsageError: there is no check of that name.
    """
    known = names()
    unknown = [name for name in only if name not in known]
    if unknown:
        raise UsageError(f"no check called {unknown[0]!r}; there is: {', '.join(known)}")
    for name in known:
        if not only or name in only:
            yield from ((name, finding) for finding in _findings(name, subject))


def _findings(name: str, subject: Subject) -> list[Finding]:
    try:
        return list(registry.load("check", name)(subject)) or [ok("nothing to say")]
    except MooncakeError as error:
        return [fail(str(error), "see the message")]
    except Exception as error:  # a stranger's check must not end the others
        return [
            fail(f"the check itself failed: {type(error).__name__}: {error}", "report it to whoever made the plugin")
        ]
