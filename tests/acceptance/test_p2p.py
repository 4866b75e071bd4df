"""One object to several hosts, one after the other and all at once: `scripts/acceptance p2p`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.acceptance import netns

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "it can run"),
]
ROOT = Path(__file__).parent.parent.parent
OBJECT_BYTES = 1_000_000_000
NUM_PULLERS = 3
MEGABITS_PER_S = 1000


class Host:
    """A process in a namespace."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.first_line = self.answer()

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the host's process ended"
        return line

    def ask(self, line: str) -> str:
        self.say(line)
        return self.answer()


@contextmanager
def host(namespace: str, address: str, *directory: str) -> Generator[Host]:
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "tests.acceptance.p2p_host", address, *directory]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield Host(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def test_several_hosts_take_less_than_one_after_the_other() -> None:
    with ExitStack() as stack:
        (first, *others) = stack.enter_context(netns.hosts(NUM_PULLERS + 1, rate=f"{MEGABITS_PER_S}mbit"))
        origin = stack.enter_context(host(first.namespace, first.address))
        pullers = [stack.enter_context(host(place.namespace, place.address, origin.first_line)) for place in others]
        checksum = origin.ask(f"register {OBJECT_BYTES}")

        began = time.monotonic()
        for puller in pullers:
            _, found = puller.ask(f"get {OBJECT_BYTES}").split()
            assert found == checksum
            assert puller.ask("drop") == "dropped"  # each has the origin alone
        serial_s = time.monotonic() - began

        began = time.monotonic()
        for puller in pullers:
            puller.say(f"get {OBJECT_BYTES}")
        answers = [puller.answer().split() for puller in pullers]
        together_s = time.monotonic() - began
        assert [found for _, found in answers] == [checksum] * NUM_PULLERS

        least_s = OBJECT_BYTES * 8 / (MEGABITS_PER_S * 1e6)
        print(
            f"\n1 GB to {NUM_PULLERS} hosts with links of {MEGABITS_PER_S} Mbit/s: one after the other {serial_s:.1f} s, all at "
            f"once {together_s:.1f} s ({', '.join(f'{float(took):.1f}' for took, _ in answers)}); one link takes {least_s:.1f} s"
        )
        assert together_s < serial_s / 2
