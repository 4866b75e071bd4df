"""The choices of an answer, computed side by side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar, cast

from starlette.requests import ClientDisconnect
from starlette.types import Receive

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
    works = list(works)
    if len(works) == 1:
        return [await works[0]]
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


class UnlessGone:
    """A scope that is left with ClientDisconnect when the client hangs up; what runs within is cancelled, as by
    asyncio.timeout."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._left = False
        self._is_gone = False
        self._task: asyncio.Task[Any]
        self._watch: asyncio.Task[None]

    async def __aenter__(self) -> None:
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._watch = asyncio.get_running_loop().create_task(_disconnected(self._receive))
        self._watch.add_done_callback(self._gone)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._left = True
        self._watch.cancel()
        if not self._is_gone:
            return
        if kind is not asyncio.CancelledError:  # it ended by itself, at the same moment: the cancellation is to come
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        if self._task.uncancel() == 0 and (kind is None or kind is asyncio.CancelledError):
            raise ClientDisconnect from error

    def _gone(self, watch: asyncio.Task[None]) -> None:
        if not self._left and not watch.cancelled():
            watch.exception()  # a connection that cannot be read is gone too
            self._is_gone = True
            self._task.cancel()


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


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
