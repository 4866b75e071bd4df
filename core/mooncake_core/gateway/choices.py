"""The choices of an answer, computed side by side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from mooncake_core.errors import MooncakeError
from mooncake_core.gateway.completion import Completion, Piece
from mooncake_core.gateway.serving import Serving

T = TypeVar("T")


class Choice:
    """One choice under way."""

    def __init__(self, index: int, prompt: int, prompt_tokens: int, completion: Completion, serving: Serving) -> None:
        self.index = index
        self.prompt = prompt
        """Number of the prompt it answers."""
        self.prompt_tokens = prompt_tokens
        self.completion = completion
        self.pieces = completion.pieces(serving)

    async def next(self) -> Piece:
        """The next piece."""
        return await anext(self.pieces)

    async def whole(self) -> Piece:
        """All pieces as one."""
        pieces = [piece async for piece in self.pieces]
        return Piece(
            "".join(piece.text for piece in pieces),
            pieces[-1].finish_reason,
            [token_id for piece in pieces for token_id in piece.token_ids],
            [token for piece in pieces for token in piece.scored],
        )


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; the first failure ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def merge(choices: Sequence[Choice]) -> AsyncGenerator[tuple[Choice, Piece], None]:
    """The remaining pieces of all choices, as they come."""
    if len(choices) == 1:
        async for piece in choices[0].pieces:
            yield choices[0], piece
        return
    waiting = {asyncio.ensure_future(choice.next()): choice for choice in choices}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                choice = waiting.pop(task)
                piece = task.result()
                yield choice, piece
                if not piece.finish_reason:
                    waiting[asyncio.ensure_future(choice.next())] = choice
    finally:
        await _cancel(waiting)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, unless the client hangs up before.

    Raises:
        ClientDisconnect: it did; the work is over by then.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        await _cancel([working, gone])


async def close(choices: Iterable[Choice]) -> None:
    """Frees what they hold; nobody may be waiting for them any more."""
    for choice in choices:
        with contextlib.suppress(MooncakeError):
            await choice.pieces.aclose()


async def _cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
