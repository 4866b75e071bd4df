"""Which protocol version two peers speak: the highest that both know. Pure."""

from __future__ import annotations

from mooncake_core.errors import VersionMismatch
from mooncake_core.wire.envelope import Hello


def agree(ours: Hello, theirs: Hello) -> int:
    """The version to speak.

    Raises:
        VersionMismatch: there is none in common; says who must be upgraded.
    """
    newest = min(ours.newest, theirs.newest)
    if newest >= max(ours.oldest, theirs.oldest):
        return newest
    older = ours.name if ours.newest < theirs.newest else theirs.name
    raise VersionMismatch(
        f"{ours.name} speaks protocol versions {ours.oldest} to {ours.newest}, {theirs.name} {theirs.oldest} to "
        f"{theirs.newest}: upgrade {older}"
    )
