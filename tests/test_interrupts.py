"""Ctrl-C that has to wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mooncake_core.interrupts import Postponed


@pytest.fixture(autouse=True)
def handler() -> Iterator[Any]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield before
    signal.signal(signal.SIGINT, before)


def test_it_is_heard_once_at_the_end_of_all_that_must_be_whole() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), Postponed():
        with Postponed():
            signal.raise_signal(signal.SIGINT)
            steps.append("first")
        signal.raise_signal(signal.SIGINT)
        steps.append("second")
    assert steps == ["first", "second"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_failed_meanwhile_is_not_forgotten() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, Postponed():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("broken")
    assert isinstance(caught.value.__context__, ValueError)
    with pytest.raises(ValueError, match="broken"), Postponed():
        raise ValueError("broken")


def test_who_ignores_it_goes_on_ignoring_it() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Postponed():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_are_never_interrupted_so_they_change_nothing() -> None:
    found = []

    def work() -> None:
        with Postponed():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
