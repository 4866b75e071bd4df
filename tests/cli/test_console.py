"""What a terminal is sent."""

from __future__ import annotations

import os
import sys

import pytest

from mooncake_cli import console
from mooncake_cli.commands.start import _Prefix


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colours_are_for_terminals_that_know_them(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], coloured: bool
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    master, terminal = os.openpty()
    with os.fdopen(master, "rb"), os.fdopen(terminal, "w") as stream:
        assert console.takes_colour(stream) is coloured


def test_a_file_gets_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with open(os.devnull, "w") as stream:
        assert not console.takes_colour(stream)


def test_names_of_processes_are_plain_where_colours_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    master, terminal = os.openpty()
    with os.fdopen(master, "rb", buffering=0) as screen, os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        _Prefix(8).log("master", "is here")
        assert screen.read(100) == b"master   | is here\r\n"
