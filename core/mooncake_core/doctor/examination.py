"""Runs the checks, each for itself: one that is broken costs its own line and no other."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from mooncake_core import registry
from mooncake_core.doctor.contract import Check, Finding, Subject, fail, found_and_fix, ok, skip
from mooncake_core.doctor.places import plugins_here
from mooncake_core.errors import MooncakeError, PluginUnavailable, UsageError


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
        check: Check = registry.load("check", name)
    except PluginUnavailable as error:
        return [_unavailable(name, subject, error)]
    try:
        return list(check(subject)) or [ok("nothing to say")]
    except MooncakeError as error:
        return [fail(str(error), "see the message")]
    except Exception as error:  # a stranger's check must not end the others
        return [
            fail(f"the check itself failed: {type(error).__name__}: {error}", "report it to whoever made the plugin")
        ]


def _unavailable(name: str, subject: Subject, error: PluginUnavailable) -> Finding:
    """A check lacks the library that what it looks at lacks: nothing is wrong where nobody wants that, which has its name."""
    missing, fix = found_and_fix(error)
    is_wanted = subject.config is not None and any(name == wanted for _, wanted in plugins_here(subject.config))
    return fail(missing, fix or "see the message") if is_wanted else skip(missing, fix)
