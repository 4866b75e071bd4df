"""Processes of a benchmark."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from mooncake_core.bench.store_processes import END_S, Process
from mooncake_core.testing.cluster import process_state, wait_for

ECHO = (
    "import os, sys; print('{\"pid\": %d}' % os.getpid(), flush=True); [print(line, flush=True) for line in sys.stdin]"
)


def test_a_held_process_stands_still_goes_on_and_can_be_closed(tmp_path: Path) -> None:
    with Process("echo", [sys.executable, "-c", ECHO], {}, tmp_path) as process:
        pid = process.receive(10)["pid"]
        process.hold()
        wait_for(lambda: process_state(pid) == "T")
        process.go_on()
        process.send({"number": 1})
        assert process.receive(10) == {"number": 1}
        process.hold()
        began = time.monotonic()
    assert time.monotonic() - began < END_S  # it ended by itself
    assert process_state(pid) == ""


def test_one_whose_answer_nobody_reads_ends_as_soon(tmp_path: Path) -> None:
    talk = "import sys; print('x' * (1 << 20), flush=True); sys.stdin.read()"
    began = time.monotonic()
    with Process("talker", [sys.executable, "-c", talk], {}, tmp_path) as process:
        pid = process._child.pid
        wait_for(lambda: process_state(pid) == "S")
    assert time.monotonic() - began < END_S
