"""Walks over all objects, slice by slice, so that whoever walks far does not keep others waiting. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

import re2

from mooncake_core.errors import InvalidRequest
from mooncake_core.store.objects import PoolObject
from mooncake_core.store.tenants import is_of_a_named_tenant, prefix_of

SLICE: Final = 1024
"""Objects looked at in one go."""
MAX_PATTERN_CHARACTERS: Final = 4096
MAX_LISTINGS: Final = 16
"""Listings open at once; the oldest is closed for another one. Each holds a reference per object."""
LISTING_S: Final = 60.0
"""A listing that nobody goes on with is closed after so long."""

Selects = Callable[[str], bool]


class Scan:
    """A walk over the objects that are there when it begins."""

    def __init__(self, objects: Sequence[PoolObject], selects: Selects) -> None:
        self._objects = objects
        self._selects = selects
        self._position = 0

    @property
    def done(self) -> bool:
        return self._position >= len(self._objects)

    def step(self, limit: int = SLICE) -> list[PoolObject]:
        """Those of the next slice that were asked for, `limit` of them at most. Some may be gone meanwhile."""
        found: list[PoolObject] = []
        for entry in self._objects[self._position : self._position + SLICE]:
            if len(found) == limit:
                break
            self._position += 1
            if self._selects(entry.key):
                found.append(entry)
        return found


class Listings:
    """Scans that clients go on with, by cursor."""

    def __init__(self, next_id: Callable[[], int]) -> None:
        """Cursors are never used twice: one of an earlier master names nothing."""
        self._next_id = next_id
        self._open: OrderedDict[int, tuple[Scan, float]] = OrderedDict()

    def take(self, cursor: int, now: float) -> Scan:
        """The scan to go on with.

        Raises:
            InvalidRequest: it was closed, or never was.
        """
        scan, until = self._open.pop(cursor, (None, 0.0))
        if scan is None or until <= now:
            raise InvalidRequest(
                f"expected the cursor of a listing that was gone on with within {LISTING_S:.0f} s, got {cursor}: "
                "begin again with 0",
                param="cursor",
            )
        return scan

    def keep(self, scan: Scan, now: float) -> int:
        """The cursor to go on with; 0 where there is no more."""
        while self._open and (len(self._open) >= MAX_LISTINGS or next(iter(self._open.values()))[1] <= now):
            self._open.popitem(last=False)
        if scan.done:
            return 0
        cursor = self._next_id()
        self._open[cursor] = (scan, now + LISTING_S)
        return cursor


def selector(tenant: str, *, prefix: str = "", pattern: str = "") -> Selects:
    """Whether a key, as it stands in the pool, is a tenant's, begins so, and has the pattern somewhere in it.

    Raises:
        InvalidRequest: the pattern is no regular expression of RE2; says why.
    """
    begins = prefix_of(tenant) + prefix
    skip = len(prefix_of(tenant))

    def is_wanted(key: str) -> bool:
        return key.startswith(begins) and bool(skip or not is_of_a_named_tenant(key))

    if not pattern:
        return is_wanted
    search = _compiled(pattern).search
    return lambda key: is_wanted(key) and search(key[skip:]) is not None


def _compiled(pattern: str) -> Any:
    """RE2 takes time linear in the text, whatever the pattern: nobody can stop the master with one."""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        message = f"expected a pattern of at most {MAX_PATTERN_CHARACTERS} characters, got {len(pattern)}"
        raise InvalidRequest(message, param="pattern")
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace")
        message = f"expected a regular expression of RE2, got {pattern!r}: {reason}"
        raise InvalidRequest(message, param="pattern") from error
