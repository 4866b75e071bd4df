"""Python, and the packages that this one asks for."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

from packaging.markers import Marker
from packaging.requirements import Requirement

from mooncake_core.doctor.contract import Finding, Subject, fail, ok
from mooncake_core.installation import conflict

PROJECT: Final = "mooncake-toolkit"


def check(subject: Subject) -> Iterator[Finding]:
    """Every requirement without an extra, and those of an extra where something of that name is installed."""
    wrong = [line for text in requires(PROJECT) or () if (line := _wrong(Requirement(text)))]
    for line in wrong:
        yield fail(line, f"pip install --upgrade {PROJECT}")
    mixed = conflict()
    if mixed:
        yield fail(mixed, "see the message")
    if not wrong and not mixed:
        kernel = f"{platform.system()} {platform.release()}"
        yield ok(
            f"{PROJECT} {version(PROJECT)}, Python {platform.python_version()}, {kernel}; what it requires is there"
        )


def _wrong(requirement: Requirement) -> str:
    """What is wrong with it; empty when nothing is. Extras are optional, so only their versions count."""
    marker = requirement.marker
    optional = marker is not None and not marker.evaluate({"extra": ""})
    if marker is not None and optional and not marker.evaluate({"extra": _extra(marker)}):
        return ""  # for another platform
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return "" if optional else f"expected {requirement.name}{requirement.specifier}, found none"
    if requirement.specifier.contains(found, prereleases=True):
        return ""
    return f"expected {requirement.name}{requirement.specifier}, found {found}"


def _extra(marker: Marker) -> str:
    """The extra that it names."""
    text = str(marker)
    return text.split("extra == ")[-1].strip("\"' )") if "extra == " in text else ""
