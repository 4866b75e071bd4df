"""Ends what is under way when the gateway stops: each open request gets an error, none is cut off without a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, Final, TypeVar

from mooncake_core.errors import ServiceUnavailable
from mooncake_core.gateway.generation import Generation, Step
from mooncake_core.gateway.serving import Serving
from mooncake_core.wire.messages.membership import ModelOffer

RETRY_AFTER_S: Final = 2.0

T = TypeVar("T")


class EndableServing:
    """Serves until `end`; whoever waits for the cluster then gets ServiceUnavailable."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._scopes: set[asyncio.Timeout] = set()
        self._ended = False

    async def models(self) -> list[ModelOffer]:
        return await self._unless_ended(self._serving.models())

    async def missing(self) -> list[str]:
        return await self._unless_ended(self._serving.missing())

    async def generate(self, generation: Generation) -> AsyncGenerator[Step, None]:
        async with aclosing(self._serving.generate(generation)) as steps:
            while (step := await self._unless_ended(_next(steps))) is not None:
                yield step

    def end(self) -> None:
        """Interrupts all that waits, now and later. Idempotent."""
        if self._ended:
            return
        self._ended = True
        now = asyncio.get_running_loop().time()
        for scope in self._scopes:
            scope.reschedule(now)

    async def _unless_ended(self, work: Coroutine[Any, Any, T]) -> T:
        scope = asyncio.timeout(0 if self._ended else None)
        try:
            async with scope:
                self._scopes.add(scope)
                return await work
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise stopping() from error
        finally:
            self._scopes.discard(scope)


def stopping() -> ServiceUnavailable:
    """What is said to whoever asks or waits while the gateway stops."""
    return ServiceUnavailable("the gateway is stopping: send the request again", retry_after_s=RETRY_AFTER_S)


async def _next(steps: AsyncGenerator[Step, None]) -> Step | None:
    return await anext(steps, None)
