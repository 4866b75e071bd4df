"""A process that has room for only a few more threads."""

from __future__ import annotations

import threading

import pytest


def room_for(monkeypatch: pytest.MonkeyPatch, count: int, name: str) -> list[str]:
    """So many threads whose names begin so can be started; those that could not."""
    start = threading.Thread.start
    refused: list[str] = []
    left = iter(range(count))

    def failing(self: threading.Thread) -> None:
        if self.name.startswith(name) and next(left, None) is None:
            refused.append(self.name)
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", failing)
    return refused
