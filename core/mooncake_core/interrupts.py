"""Ctrl-C where it must not break off what was begun."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the standard library's own
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Postponed:
    """While it lasts Ctrl-C waits, to be heard at its end: nobody could tell how far the steps within had come. Only the main
    thread is ever interrupted; in others this does nothing."""

    def __enter__(self) -> None:
        self._handler: Any = None
        self._came: FrameType | None = None
        if threading.current_thread() is threading.main_thread():
            # `signal` makes enums of what these return, which takes longer than all the rest here.
            handler = _signal.getsignal(signal.SIGINT)
            if callable(handler):
                self._handler = handler
                _signal.signal(signal.SIGINT, self._note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler is None:
            return
        _signal.signal(signal.SIGINT, self._handler)
        if self._came is not None:
            self._handler(signal.SIGINT, self._came)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = frame
