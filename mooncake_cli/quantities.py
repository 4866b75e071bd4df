"""Option types for sizes, durations and URLs, as people write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


class Quantity(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """Base: a number with a unit, parsed by mooncake_core.units."""

    def parse(self, value: Any) -> float:
        raise NotImplementedError

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class DurationType(Quantity):
    """Seconds in "1s" or "100ms"."""

    name = "duration"

    def parse(self, value: Any) -> float:
        from mooncake_core.units import parse_duration

        return parse_duration(value)


class PatienceType(DurationType):
    """A duration that something can take: not 0."""

    def parse(self, value: Any) -> float:
        duration_s = super().parse(value)
        if not duration_s:
            raise ValueError(f"expected a duration of more than 0, like 30s, got {value!r}")
        return duration_s


class BusyPollType(DurationType):
    """How long to look for what comes next before sleeping."""

    def parse(self, value: Any) -> float:
        from mooncake_core import busy_poll

        return busy_poll.checked(super().parse(value))


class SizeType(Quantity):
    """Bytes in "64KiB" or "1MiB"."""

    name = "size"

    def parse(self, value: Any) -> int:
        from mooncake_core.units import parse_size

        return parse_size(value)


class UrlType(click.ParamType):  # type: ignore[type-arg]
    """Of an HTTP server."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from mooncake_core.address import http_base

        try:
            return http_base(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class ListType(click.ParamType):  # type: ignore[type-arg]
    """Several values of another type, separated by commas, none of them twice."""

    def __init__(self, item: click.ParamType) -> None:  # type: ignore[type-arg]
        self._item = item
        self.name = f"{item.name},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        if isinstance(value, list):
            return value
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        if not parts:
            self.fail(f"expected values separated by commas, got {value!r}", param, ctx)
        convert: Callable[[Any], Any] = lambda part: self._item.convert(part, param, ctx)  # noqa: E731
        return list(dict.fromkeys(convert(part) for part in parts))


class RangeType(click.ParamType):  # type: ignore[type-arg]
    """Two whole numbers, the first and the last: "4..64", or one for both."""

    name = "first..last"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value[0], value[1]
        first, dots, last = str(value).partition("..")
        try:
            return int(first), int(last if dots else first)
        except ValueError:
            self.fail(f"expected a range such as 4..64, got {value!r}", param, ctx)


DURATION = DurationType()
PATIENCE = PatienceType()
BUSY_POLL = BusyPollType()
URL = UrlType()
SIZE = SizeType()
