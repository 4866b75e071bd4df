"""The public door: plugins are entry points, found by name and loaded on first use.

Built-in transports, tiers, engines and policies come through here like a stranger's do. Listing imports nothing.
"""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from mooncake_core.errors import MooncakeError, PluginUnavailable, PluginUnknown

GROUPS: Final = {
    "transport": "mooncake.transports",
    "tier": "mooncake.tiers",
    "engine": "mooncake.engines",
    "policy": "mooncake.policies",
    "admission": "mooncake.admissions",
    "eviction": "mooncake.evictions",
    "check": "mooncake.checks",
}


def installed(kind: str) -> list[EntryPoint]:
    """The plugins of one kind (a key of GROUPS), by name, without importing any."""
    found = {entry.name: entry for entry in entry_points(group=GROUPS[kind])}
    return [found[name] for name in sorted(found)]


def load(kind: str, name: str) -> Any:
    """The object behind a plugin's name, usually a class.

    Raises:
        PluginUnknown: nothing of that name is installed; lists what is.
        PluginUnavailable: it is installed but cannot be imported here; says why.
    """
    entries = {entry.name: entry for entry in installed(kind)}
    if name not in entries:
        raise PluginUnknown(_unknown(kind, name, list(entries)))
    try:
        return entries[name].load()
    except MooncakeError:
        raise
    except Exception as error:  # whatever a stranger's module raises must become one sentence
        raise PluginUnavailable(f"{kind} {name} is not available: {error}", kind=kind, name=name) from error


def _unknown(kind: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"no {kind} called {name!r} is installed{hint} (installed: {', '.join(known) or 'none'})"
