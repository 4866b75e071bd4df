"""The routes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mooncake_core.config.schema import GatewayConfig
from mooncake_core.errors import MooncakeError, ServiceUnavailable
from mooncake_core.gateway.completion import Completion, Piece
from mooncake_core.gateway.generation import Generation
from mooncake_core.gateway.metrics import GatewayMetrics
from mooncake_core.gateway.request_log import RequestLog
from mooncake_core.gateway.requests import (
    DEFAULT_MAX_TOKENS,
    ChatRequest,
    Common,
    CompletionRequest,
    parse,
)
from mooncake_core.gateway.responses import DONE, HTTPError, Shape, encode, error_body, error_response, event, usage
from mooncake_core.gateway.serving import Serving, check_length
from mooncake_core.gateway.tokenizer import Tokenizer
from mooncake_core.wire.messages.membership import ModelOffer

CLOSED_REQUEST: Final = 499
TIMINGS_HEADER: Final = "x-mooncake-timings"
TRANSFER_HEADER: Final = "x-mooncake-kv-transfer"
"""`whole`: KV moves before and after the computation, not layer by layer beside it; for comparisons."""
TOKENIZE_ON_LOOP_CHARACTERS: Final = 2000

_log = logging.getLogger(__name__)


class Gateway:
    """State of the HTTP API: who serves, how text becomes tokens, and how much is under way."""

    def __init__(
        self, serving: Serving, settings: GatewayConfig, tokenizer: Callable[[], Tokenizer], log: RequestLog
    ) -> None:
        self._serving = serving
        self._settings = settings
        self._tokenizer = tokenizer
        self._log = log
        self._in_progress = 0
        self.metrics = GatewayMetrics()

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/chat/completions", self._chat_completions, methods=["POST"]),
                Route("/health", self._health, methods=["GET"]),
                Route("/ready", self._ready, methods=["GET"]),
                Route("/metrics", self._metrics, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _no_route},
        )

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        try:
            missing = await self._serving.missing()
        except MooncakeError as error:
            missing = [f"the master does not answer: {error}"]
        return _json({"ready": not missing, "missing": missing}, status=503 if missing else 200)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.render(), media_type="text/plain; version=0.0.4")

    async def _models(self, request: Request) -> Response:
        try:
            models = await self._serving.models()
        except MooncakeError as error:
            return error_response(error, "models")
        data = [
            {
                "id": model.name,
                "object": "model",
                "created": 0,
                "owned_by": "mooncake",
                "max_model_len": model.max_context_tokens,
            }
            for model in models
        ]
        return _json({"object": "list", "data": data})

    async def _completions(self, request: Request) -> Response:
        return await self._guarded(request, self._complete_text)

    async def _chat_completions(self, request: Request) -> Response:
        return await self._guarded(request, self._complete_chat)

    async def _guarded(self, request: Request, serve: Callable[[Request, bytes, str], Awaitable[Response]]) -> Response:
        """Limits, errors in OpenAI's shape, and a count of what is in progress."""
        request_id = uuid.uuid4().hex
        try:
            self._enter()
        except MooncakeError as error:
            return self._counted(request, error_response(error, request_id))
        left = False
        try:
            response = await serve(request, await self._body(request), request_id)
            left = isinstance(response, StreamingResponse)  # then the stream leaves when it ends
        except ClientDisconnect:
            response = Response(status_code=CLOSED_REQUEST)
        except MooncakeError as error:
            response = error_response(error, request_id)
        except Exception as error:  # a bug must not end in a bare connection reset
            _log.exception("request %s failed", request_id)
            response = error_response(error, request_id)
        finally:
            if not left:
                self._leave()
        return self._counted(request, response)

    def _enter(self) -> None:
        if self._in_progress >= self._settings.max_concurrent:
            raise ServiceUnavailable(
                f"{self._in_progress} requests are in progress, no more are taken", retry_after_s=1
            )
        self._in_progress += 1
        self.metrics.in_progress.inc()

    def _leave(self) -> None:
        self._in_progress -= 1
        self.metrics.in_progress.dec()

    def _counted(self, request: Request, response: Response) -> Response:
        self.metrics.requests.labels(request.url.path, str(response.status_code)).inc()
        return response

    async def _body(self, request: Request) -> bytes:
        limit = self._settings.max_body
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise HTTPError(413, "body_too_large", f"the body exceeds {limit} bytes")
        return bytes(body)

    async def _complete_text(self, request: Request, body: bytes, request_id: str) -> Response:
        wanted = parse(body, CompletionRequest)
        model = await self._model(wanted.model)
        prompts = [await self._prompt_tokens(prompt) for prompt in wanted.prompts()]
        default = DEFAULT_MAX_TOKENS
        completions = [
            self._completion(
                wanted,
                model,
                tokens,
                f"{request_id}-{index}" if index else request_id,
                default,
                index,
                by_layer=_by_layer(request),
            )
            for index, tokens in enumerate(prompts)
        ]
        return await self._respond(
            request, wanted, completions, _shape(wanted, request_id, model, chat=False), request_id
        )

    async def _complete_chat(self, request: Request, body: bytes, request_id: str) -> Response:
        wanted = parse(body, ChatRequest)
        model = await self._model(wanted.model)
        messages = [message.as_template_input() for message in wanted.messages]
        length = sum(len(message["content"]) for message in messages)
        tokens = await self._tokens(lambda: self._tokenizer().encode_chat(messages), length)
        completion = self._completion(
            wanted,
            model,
            tokens,
            request_id,
            None,
            0,
            by_layer=_by_layer(request),
            max_tokens=wanted.max_completion_tokens,
        )
        return await self._respond(
            request, wanted, [completion], _shape(wanted, request_id, model, chat=True), request_id
        )

    async def _model(self, name: str) -> ModelOffer:
        models = await self._serving.models()
        if not models:
            missing = await self._serving.missing()
            raise ServiceUnavailable(f"no model can be served now: {'; '.join(missing)}", retry_after_s=2)
        for model in models:
            if model.name == name:
                return model
        known = ", ".join(model.name for model in models)
        raise HTTPError(404, "model_not_found", f"model {name!r} is not served here; there is: {known}", "model")

    async def _prompt_tokens(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, list):
            return prompt
        return await self._tokens(lambda: self._tokenizer().encode(prompt), len(prompt))

    async def _tokens(self, tokenize: Callable[[], list[int]], length: int) -> list[int]:
        """Long texts are tokenized in a thread: they must not hold up the tokens of others."""
        if length < TOKENIZE_ON_LOOP_CHARACTERS:
            return tokenize()
        return await asyncio.to_thread(tokenize)

    def _completion(
        self,
        wanted: Common,
        model: ModelOffer,
        token_ids: list[int],
        request_id: str,
        default: int | None,
        choice: int,
        *,
        by_layer: bool,
        max_tokens: int | None = None,
    ) -> _Choice:
        length = check_length(model, token_ids, max_tokens or wanted.max_tokens, default)
        generation = Generation(
            request_id=request_id,
            model=model,
            token_ids=token_ids,
            sampling=wanted.sampling(length, choice),
            cache_salt=wanted.cache_salt or "",
            timeout_s=self._settings.request_timeout,
            by_layer=by_layer,
        )
        completion = Completion(generation, self._tokenizer(), wanted.stops, self.metrics, self._log)
        return _Choice(choice, len(token_ids), completion, completion.pieces(self._serving))

    async def _respond(
        self, request: Request, wanted: Common, choices: list[_Choice], shape: Shape, request_id: str
    ) -> Response:
        """Waits for each choice's first piece, so that early errors have a status of their own."""
        headers = {"x-request-id": request_id}
        if not wanted.stream:
            texts = await _unless_gone(request, choices, _gather(choices))
            timings = choices[0].completion.timings if _wants_timings(request) else None
            body = shape.whole(texts, _counts(choices), timings)
            return Response(body, media_type="application/json", headers=headers)
        firsts = await _unless_gone(request, choices, asyncio.gather(*(choice.next() for choice in choices)))
        events = self._events(choices, firsts, shape, wanted, request_id, timings=_wants_timings(request))
        return StreamingResponse(
            events, media_type="text/event-stream", headers={**headers, "cache-control": "no-cache"}
        )

    async def _events(
        self,
        choices: list[_Choice],
        firsts: list[Piece],
        shape: Shape,
        wanted: Common,
        request_id: str,
        *,
        timings: bool,
    ) -> AsyncGenerator[bytes, None]:
        try:
            for choice, first in zip(choices, firsts, strict=True):
                yield shape.chunk(choice.index, first, first=True)
            running = [choice for choice, first in zip(choices, firsts, strict=True) if not first.finish_reason]
            async with aclosing(_merge(running)) as merged:
                async for choice, piece in merged:
                    if piece.text or piece.finish_reason or wanted.return_token_ids:
                        yield shape.chunk(choice.index, piece, first=False)
            if wanted.include_usage:
                yield shape.usage_chunk(_counts(choices))
            if timings:
                yield shape.timings_chunk(choices[0].completion.timings)
            yield DONE
        except MooncakeError as error:
            yield event(error_body(error, request_id))
        except Exception as error:
            _log.exception("request %s failed", request_id)
            yield event(error_body(error, request_id))
        finally:
            await _close(choices)
            self._leave()


class _Choice:
    """One choice of an answer under way."""

    def __init__(self, index: int, prompt_tokens: int, completion: Completion, pieces: Any) -> None:
        self.index = index
        self.prompt_tokens = prompt_tokens
        self.completion = completion
        self.pieces = pieces

    async def next(self) -> Piece:
        """The next piece."""
        piece: Piece = await anext(self.pieces)
        return piece


def _shape(wanted: Common, request_id: str, model: ModelOffer, *, chat: bool) -> Shape:
    return Shape(request_id, model.name, chat=chat, token_ids=bool(wanted.return_token_ids))


def _by_layer(request: Request) -> bool:
    return request.headers.get(TRANSFER_HEADER, "layers") != "whole"


def _wants_timings(request: Request) -> bool:
    """Whether the answer is to say where the time went."""
    return request.headers.get(TIMINGS_HEADER, "") not in ("", "0")


async def _gather(choices: list[_Choice]) -> list[Piece]:
    async def whole(choice: _Choice) -> Piece:
        pieces = [piece async for piece in choice.pieces]
        token_ids = [token_id for piece in pieces for token_id in piece.token_ids]
        return Piece("".join(piece.text for piece in pieces), pieces[-1].finish_reason, token_ids)

    return list(await asyncio.gather(*(whole(choice) for choice in choices)))


async def _merge(choices: list[_Choice]) -> AsyncGenerator[tuple[_Choice, Piece], None]:
    """Pieces of all choices, as they come."""
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
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _unless_gone(request: Request, choices: list[_Choice], work: Any) -> Any:
    """The result of the work, unless the client hangs up before; then everything is freed."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    except BaseException:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await _close(choices)
        raise
    finally:
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _close(choices: list[_Choice]) -> None:
    for choice in choices:
        with contextlib.suppress(RuntimeError, MooncakeError):  # it may be running: then its task closes it
            await choice.pieces.aclose()


def _counts(choices: list[_Choice]) -> dict[str, Any]:
    return usage(
        sum(choice.prompt_tokens for choice in choices),
        sum(choice.completion.output_tokens for choice in choices),
        sum(choice.completion.cached_tokens for choice in choices),
    )


def _json(body: Any, status: int = 200) -> Response:
    return Response(encode(body), status_code=status, media_type="application/json")


async def _no_route(request: Request, error: Exception) -> Response:
    """Unknown routes and methods, in OpenAI's shape."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = f"{request.method} {request.url.path}: " + ("no such route" if status == 404 else "method not allowed")
    return error_response(HTTPError(status, "not_found" if status == 404 else "method_not_allowed", message), "route")
