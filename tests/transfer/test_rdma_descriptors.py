"""The descriptor of a completion channel is found, also while others open and close such."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mooncake_core.errors import PathFailed
from mooncake_rdma import event_descriptors
from mooncake_rdma.event_descriptors import with_descriptor


class Process:
    """Event descriptors that are open, of channels and of others."""

    def __init__(self) -> None:
        self.open = {3}
        self.num_made = 0
        self.others: Iterator[int] = iter(())
        """What another library opens while a channel is made."""

    def make(self) -> Channel:
        self.num_made += 1
        return Channel(self)


class Channel:
    """Takes the lowest number that is free."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.number = next(number for number in range(1000) if number not in process.open)
        process.open |= {self.number, *([other] if (other := next(process.others, None)) else [])}

    def close(self) -> None:
        self.process.open.remove(self.number)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    monkeypatch.setattr(event_descriptors, "PAUSE_S", 0.0)
    return Process()


def test_it_is_the_one_that_is_new(process: Process) -> None:
    channel, descriptor = with_descriptor(process.make, lambda: process.open)
    assert (descriptor, process.num_made) == (channel.number, 1)


def test_where_another_one_is_opened_meanwhile_the_channel_is_made_anew(process: Process) -> None:
    process.others = iter([7, 8])
    channel, descriptor = with_descriptor(process.make, lambda: process.open)
    assert (descriptor, process.num_made) == (channel.number, 3)
    assert process.open == {3, 7, 8, descriptor}


def test_where_that_does_not_end_the_error_says_so_and_nothing_is_left_open(process: Process) -> None:
    process.others = iter(range(10, 1000))
    with pytest.raises(PathFailed, match="something else in this process opens and closes such channels"):
        with_descriptor(process.make, lambda: process.open)
    assert process.open == {3, *range(10, 10 + event_descriptors.TRIES)}


def test_other_descriptors_are_no_event_descriptors() -> None:
    ends = os.pipe()
    assert not event_descriptors.event_descriptors() & set(ends)
    for end in ends:
        os.close(end)
