"""Completions on their way from a transport's threads to whoever polls, with a descriptor to wait on."""

from __future__ import annotations

import os
import threading

from mooncake_core.transfer.contract import Completion


class Completions:
    """A list that many threads add to and one takes from; `fileno` is readable while it holds something."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: list[Completion] = []
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False

    def fileno(self) -> int:
        return self._fd

    def add(self, completion: Completion) -> None:
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
