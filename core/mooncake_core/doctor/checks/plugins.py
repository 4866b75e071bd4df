"""Whether plugins load: those that the configuration names must, others may lack what they need."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Final

from mooncake_core import registry
from mooncake_core.doctor.contract import Finding, Subject, fail, ok, skip
from mooncake_core.doctor.places import plugins_here
from mooncake_core.errors import MooncakeError

TAKES_SECONDS: Final = "torch"
"""An engine whose import takes seconds: loaded only where it is wanted."""


def check(subject: Subject) -> Iterator[Finding]:
    wanted = set(plugins_here(subject.config)) if subject.config else set()
    for kind in registry.GROUPS:
        if kind != "check":  # the doctor loads those itself
            yield from _of_kind(kind, {name for of, name in wanted if of == kind})


def _of_kind(kind: str, wanted: Set[str]) -> Iterator[Finding]:
    loaded = []
    for name in sorted({entry.name for entry in registry.installed(kind)} | wanted):
        if name == TAKES_SECONDS and name not in wanted:
            continue
        try:
            registry.load(kind, name)
            loaded.append(name)
        except MooncakeError as error:
            if name in wanted:
                yield fail(
                    f"the configuration wants {kind} {name}: {error}", "install what is missing, or choose another"
                )
            else:
                yield skip(str(error))
    if loaded:
        yield ok(f"{kind}: {', '.join(loaded)}")
