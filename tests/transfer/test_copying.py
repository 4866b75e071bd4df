"""Copies between memories of this process, and of others that are mapped."""

from __future__ import annotations

import threading
import time

from mooncake_core.transfer.copying import copy

LONG_BYTES = 256 << 20
FEWEST_TURNS = 10


def test_a_long_copy_leaves_the_interpreter_to_others() -> None:
    here, there = memoryview(bytearray(LONG_BYTES)), memoryview(bytearray(LONG_BYTES))
    begun, ended = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        copy([here], [there], write=True)
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    turns = 0
    while not ended.is_set():
        turns += 1
        time.sleep(0.0005)
    thread.join()
    assert turns >= FEWEST_TURNS
