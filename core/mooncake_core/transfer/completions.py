"""Completions on their way from a transport's threads to the engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from mooncake_core.transfer.contract import Completion


class Completions:
    """Delivered at once; or, without `deliver`, a list that many threads add to and one takes from, `fileno` readable
    while it holds something."""

    def __init__(self, deliver: Callable[[Completion], None] | None = None) -> None:
        self._deliver = deliver
        self._lock = threading.Lock()
        self._items: list[Completion] = []
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False

    def fileno(self) -> int:
        return self._fd

    def add(self, completion: Completion) -> None:
        if self._deliver is not None:
            self._deliver(completion)
            return
        with self._lock:
            if not self._items and not self._closed:
                os.eventfd_write(self._fd, 1)
            self._items.append(completion)

    def take(self) -> list[Completion]:
        """All there are; never blocks."""
        with self._lock:
            if self._items and not self._closed:
                os.eventfd_read(self._fd)
            items, self._items = self._items, []
            return items

    def close(self) -> None:
        """Frees the descriptor; what is left can still be taken. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._fd)
