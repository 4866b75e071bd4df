"""Who else is installed under the import name `mooncake`: two distributions that own it overwrite each other's files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

DROPIN: Final = "mooncake-dropin"
PACKAGE: Final = "mooncake/"


def conflict(installed: Iterable[Distribution] | None = None) -> str:
    """What is wrong with the files of the package `mooncake`, and how to put it right; empty when nothing is.

    Known from the distributions' own lists of files, so that it shows in whichever order they were installed, and also
    where one of them was removed again, and took files of the other along.
    """
    owners = list(_owners(distributions() if installed is None else installed))
    ours = [owner for owner in owners if owner.name == DROPIN]
    others = [owner for owner in owners if owner.name != DROPIN]
    if not ours:
        return ""
    shared = [owner for owner in others if _folder(owner) == _folder(ours[0])]
    if shared:
        names = " and ".join(f"{owner.name} {owner.version}" for owner in [*ours, *shared])
        removed = " ".join(owner.name for owner in [*shared, *ours])
        return (
            f"{names} are both installed and own the same files of the package `mooncake`, so what runs is a mix of them: "
            f"keep one, `pip uninstall -y {removed}`, then install the one you want"
        )
    missing = _missing(ours[0])
    if missing:
        return (
            f"files of {DROPIN} are missing ({', '.join(missing)}), probably removed together with another distribution: "
            f"`pip install --force-reinstall --no-deps {DROPIN}`"
        )
    return ""


def _owners(installed: Iterable[Distribution]) -> Iterator[Distribution]:
    """Distributions with files in the package. The lists are searched as text: some have ten thousands of lines."""
    for distribution in installed:
        if distribution.name == DROPIN or f"\n{PACKAGE}" in f"\n{distribution.read_text('RECORD') or ''}":
            yield distribution


def _folder(distribution: Distribution) -> Path:
    return Path(str(distribution.locate_file(""))).resolve()


def _missing(distribution: Distribution) -> list[str]:
    listed = [path for path in distribution.files or () if str(path).startswith(PACKAGE) and path.suffix != ".pyc"]
    return [str(path) for path in listed if not Path(str(distribution.locate_file(path))).exists()]
