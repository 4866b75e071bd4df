"""Requests named by the beginning of their id, as tables print it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

ID: Final = re.compile(r"[^-.]*")
"""What comes before the number of a choice (-1) or of an attempt (.2)."""
SHOWN: Final = 8
IN_BODIES: Final = re.compile(r"(chat)?cmpl-")
"""What an id begins with in the body of an answer; in its header, and in tables, it does not."""


def bare(given: str) -> str:
    """An id as the processes know it."""
    match = IN_BODIES.match(given)
    return given[match.end() :] if match else given


def resolve(given: str, known: Iterable[str]) -> str | None:
    """The request that `given` names: a whole id, or the beginning of just one. None: none begins so.

    Raises:
        UsageError: several begin so; lists them.
    """
    from mooncake_core.errors import UsageError

    beginning = [request_id for request_id in known if request_id.startswith(given)]
    if any(belongs(request_id, given) for request_id in beginning):
        return given
    requests = list(dict.fromkeys(match[0] for request_id in beginning if (match := ID.match(request_id))))
    if len(requests) > 1:
        shown = ", ".join(requests[:SHOWN]) + (f" and {len(requests) - SHOWN} more" if len(requests) > SHOWN else "")
        raise UsageError(f"{len(requests)} requests begin with {given}: give more of the id of one of {shown}")
    return requests[0] if requests else None


def belongs(known: str, request_id: str) -> bool:
    """Whether an id is that of the request, or of one of its choices and attempts."""
    return known.startswith(request_id) and known[len(request_id) : len(request_id) + 1] in ("", "-", ".")
