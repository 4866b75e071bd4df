"""Waiting that a cancel cannot cut short: memory in use stays in use until whoever uses it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def all_ended(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs coroutines at once; returns, raises, or is cancelled only when every one of them has ended.

    A cancel is not passed on to them. The first of their errors is raised.
    """
    tasks = [asyncio.ensure_future(job) for job in work]
    cancelled: asyncio.CancelledError | None = None
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return [task.result() for task in tasks]


async def outlasting(work: Coroutine[Any, Any, T]) -> tuple[T, asyncio.CancelledError | None]:
    """What comes of a coroutine, and the cancel that came meanwhile: the caller raises it when it has done what it must."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    try:
        return task.result(), cancelled
    except Exception:
        if cancelled is not None:
            raise cancelled from None
        raise
