"""Sends the choices of a request as one answer: whole, or as a stream of server-sent events."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from mooncake_core.errors import MooncakeError
from mooncake_core.gateway.choices import Choice, UnlessGone, close, merge, together
from mooncake_core.gateway.completion import Piece
from mooncake_core.gateway.http_errors import error_body
from mooncake_core.gateway.metrics import GatewayMetrics
from mooncake_core.gateway.responses import DONE, Shape, event, usage

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer under way."""

    request_id: str
    choices: Sequence[Choice]
    shape: Shape
    metrics: GatewayMetrics
    include_usage: bool
    """A stream ends with the token counts."""
    continuous_usage: bool
    """Each event of a stream has the token counts so far."""
    empty_pieces: bool
    """A stream has events for tokens whose text is not certain yet."""
    timings: bool
    """Say where the time went."""

    async def whole(self, request: Request) -> Response:
        """Everything at once."""
        try:
            async with UnlessGone(request.receive):
                pieces = await together([choice.whole() for choice in self.choices])
        finally:
            await close(self.choices)
        timings = self.choices[0].completion.timings if self.timings else None
        return Response(
            self.shape.whole(pieces, self._counts(), timings), media_type="application/json", headers=self._headers()
        )

    async def stream(self, request: Request, on_end: Callable[[], None]) -> Response:
        """As it comes; `on_end` is called when the response has ended. Waits for each choice's first piece, so that early
        errors have a status of their own."""
        try:
            async with UnlessGone(request.receive):
                firsts = await together([choice.next() for choice in self.choices])
        except BaseException:
            await close(self.choices)
            raise
        headers = {**self._headers(), "cache-control": "no-cache"}
        return _Stream(self._events(firsts), self.choices, on_end, headers)

    async def _events(self, firsts: list[Piece]) -> AsyncGenerator[bytes, None]:
        try:
            for choice, first in zip(self.choices, firsts, strict=True):
                yield self._chunk(choice, first, first=True)
                self._sent(first)
            running = [choice for choice, first in zip(self.choices, firsts, strict=True) if not first.finish_reason]
            async with aclosing(merge(running)) as merged:
                async for choice, piece in merged:
                    if piece.text or piece.finish_reason or self.empty_pieces:
                        yield self._chunk(choice, piece, first=False)
                        self._sent(piece)
            if self.include_usage:
                yield self.shape.usage_chunk(self._counts())
            if self.timings:
                yield self.shape.timings_chunk(self.choices[0].completion.timings)
            yield DONE
        except MooncakeError as error:
            yield event(error_body(error, self.request_id))
        except Exception as error:
            _log.exception("request %s failed", self.request_id)
            yield event(error_body(error, self.request_id))

    def _chunk(self, choice: Choice, piece: Piece, *, first: bool) -> bytes:
        return self.shape.chunk(choice.index, piece, self._counts() if self.continuous_usage else None, first=first)

    def _sent(self, piece: Piece) -> None:
        if piece.received:
            self.metrics.token.observe(time.monotonic() - piece.received)

    def _counts(self) -> dict[str, Any]:
        """Token counts so far. A prompt counts once, however many choices answer it."""
        firsts = list({choice.prompt: choice for choice in reversed(self.choices)}.values())
        return usage(
            sum(choice.prompt_tokens for choice in firsts),
            sum(choice.completion.output_tokens for choice in self.choices),
            sum(choice.completion.cached_tokens for choice in firsts),
        )

    def _headers(self) -> dict[str, str]:
        return {"x-request-id": self.request_id}


class _Stream(StreamingResponse):
    """Ends when the client hangs up; frees what the choices hold however it ends, even if it never began."""

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        choices: Sequence[Choice],
        on_end: Callable[[], None],
        headers: dict[str, str],
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events
        self._choices = choices
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with UnlessGone(receive):
                await self.stream_response(send)
        except (ClientDisconnect, OSError):
            pass  # nobody is left to be told
        finally:
            try:
                await self._events.aclose()
                await close(self._choices)
            finally:
                self._on_end()
