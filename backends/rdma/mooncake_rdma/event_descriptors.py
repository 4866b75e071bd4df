"""Which descriptor a completion channel has: pyverbs does not tell."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, Protocol, TypeVar

from mooncake_core.errors import PathFailed

TRIES: Final = 20
PAUSE_S: Final = 0.01
OPEN: Final = Path("/proc/self/fd")
_MAKING: Final = threading.Lock()


class Channel(Protocol):
    """Of pyverbs."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Channel)


def with_descriptor(make: Callable[[], C], listed: Callable[[], Collection[int]] | None = None) -> tuple[C, int]:
    """What `make` makes, and its descriptor: the one that is new. Where another library opens or closes one at that moment, it
    is made anew.

    Raises:
        PathFailed: others do that all the time.
    """
    listed = listed or event_descriptors
    with _MAKING:
        for _ in range(TRIES):
            before = set(listed())
            channel = make()
            new = set(listed()) - before
            if len(new) == 1:
                return channel, new.pop()
            channel.close()
            time.sleep(PAUSE_S)
    raise PathFailed(
        f"the descriptor of an RDMA completion channel was not found in {TRIES} tries: something else in this process opens "
        "and closes such channels all the time; make the transport before it, or in a process of its own",
        path="rdma",
    )


def event_descriptors() -> set[int]:
    """Those of RDMA events that this process has open."""
    found = set()
    for entry in OPEN.iterdir():
        try:
            if os.readlink(entry) == "anon_inode:[infinibandevent]":
                found.add(int(entry.name))
        except FileNotFoundError:  # it was that of the listing, or was closed since
            continue
    return found
