"""What cases of every suite are made of. Only the standard library: upstream's interpreter has no more."""

from __future__ import annotations

import ctypes
import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MIB = 1 << 20
TOO_LARGE = 256 * MIB


@dataclass(frozen=True)
class Case:
    """One call of one function."""

    name: str
    run: Callable[..., None]
    row: tuple[Any, ...]
    differs: str
    """Why upstream answers otherwise; a line of docs/guide/dropin.md."""


Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def registering(cases: dict[str, Case]) -> Callable[..., Decorator]:
    """The decorator that enters the cases of one suite."""

    def case(*rows: Any, differs: str = "") -> Decorator:
        """Registers a function, once for each row of arguments. Its first argument is the suite's World."""

        def register(function: Callable[..., None]) -> Callable[..., None]:
            for number, row in enumerate(rows or [()]):
                arguments = row if isinstance(row, tuple) else (row,)
                suffix = f"-{number}-{_label(arguments[0])}" if arguments else ""
                name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}{suffix}"
                assert name not in cases, name
                cases[name] = Case(name, function, arguments, differs)
            return function

        return register

    return case


def _label(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return "".join(letter if letter.isalnum() else "_" for letter in text)[:24]


class Memory:
    """Memory with an address, of a pattern that shows what was written to it."""

    def __init__(self, num_bytes: int, content: bytes = b"") -> None:
        self._array = (ctypes.c_char * max(1, num_bytes))()
        self.address = ctypes.addressof(self._array)
        self.size = num_bytes
        if num_bytes < TOO_LARGE:
            self.fill(content or b"\xa5" * num_bytes)

    def fill(self, content: bytes) -> None:
        ctypes.memmove(self.address, content, len(content))

    @property
    def content(self) -> bytes:
        return self._array.raw[: self.size]


def pattern(num_bytes: int, seed: int = 0) -> bytes:
    """Bytes of which no two places near each other look alike."""
    block = bytes((index * 31 + seed * 17 + (index >> 8) * 7) & 0xFF for index in range(min(num_bytes, 65_536)))
    return (block * (num_bytes // max(1, len(block)) + 1))[:num_bytes]


def raises(kind: type[BaseException] | tuple[type[BaseException], ...], work: Callable[[], Any]) -> str:
    """The text of the error that work raises."""
    try:
        answer = work()
    except kind as error:
        return str(error)
    raise AssertionError(f"expected {kind}, got the answer {answer!r}")


def in_threads(count: int, work: Callable[[int], Any]) -> Sequence[Any]:
    """The answers of work(0) to work(count - 1), all run at once."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def run_and_print(cases: dict[str, Case], world: Any, names: Sequence[str]) -> None:
    """Runs cases, all where none is named, and prints what came of each as JSON."""
    for name in names or cases:
        found = cases[name]
        print(json.dumps({"begins": name}), flush=True)
        try:
            found.run(world, *found.row)
        except Exception:
            outcome = traceback.format_exc(limit=-2)
        else:
            outcome = ""
        world.empty()
        print(json.dumps({"name": name, "failure": outcome}), flush=True)
    world.close()
