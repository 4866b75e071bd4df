"""The routes."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mooncake_core.config.schema import GatewayConfig
from mooncake_core.errors import MooncakeError, ServiceUnavailable
from mooncake_core.gateway import headers
from mooncake_core.gateway.answers import Answer
from mooncake_core.gateway.choices import Choice
from mooncake_core.gateway.completion import Completion
from mooncake_core.gateway.deadlines import timeout_s
from mooncake_core.gateway.ending import EndableServing, stopping
from mooncake_core.gateway.generation import Generation
from mooncake_core.gateway.http_errors import HTTPError, error_response
from mooncake_core.gateway.metrics import GatewayMetrics
from mooncake_core.gateway.prompts import Prompt, Prompts
from mooncake_core.gateway.request_log import RequestLog
from mooncake_core.gateway.requests import (
    DEFAULT_CHAT_TOKENS,
    DEFAULT_MAX_TOKENS,
    ChatRequest,
    Common,
    CompletionRequest,
    parse,
)
from mooncake_core.gateway.responses import Shape
from mooncake_core.gateway.serving import Serving, check_length
from mooncake_core.gateway.tenants import Tenant, Tenants
from mooncake_core.gateway.tokenizer import Tokenizer
from mooncake_core.wire.messages.membership import ModelOffer

CLOSED_REQUEST: Final = 499
BODY_TIMEOUT_S: Final = 30.0
"""A body that takes longer holds a place that others wait for."""

_log = logging.getLogger(__name__)


class Gateway:
    """State of the HTTP API: who serves, who may ask, how text becomes tokens, and how much is under way."""

    def __init__(
        self, serving: Serving, settings: GatewayConfig, tokenizer: Callable[[], Tokenizer], log: RequestLog
    ) -> None:
        """Raises ConfigError where the API keys cannot be used."""
        self._serving = EndableServing(serving)
        self._settings = settings
        self._tenants = Tenants(settings)
        self._tokenizer = tokenizer
        self._prompts = Prompts(tokenizer)
        self._log = log
        self._in_progress = 0
        self._takes_requests = True
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

    def refuse_new(self) -> None:
        """From now on new requests are answered with 503; those under way go on."""
        self._takes_requests = False

    def end_open(self) -> None:
        """Ends what is under way: with 503, or an error event where a stream has begun."""
        self._serving.end()

    def is_busy(self) -> bool:
        """Whether requests are under way."""
        return self._in_progress > 0

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        try:
            missing = await self._serving.missing() if self._takes_requests else ["the gateway is stopping"]
        except MooncakeError as error:
            missing = [f"the master does not answer: {error}"]
        return _json({"ready": not missing, "missing": missing}, status=503 if missing else 200)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.render(), media_type="text/plain; version=0.0.4")

    async def _models(self, request: Request) -> Response:
        try:
            self._tenant(request)
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

    async def _guarded(self, request: Request, serve: Callable[[_Asked], Awaitable[Response]]) -> Response:
        """API keys, limits, errors in OpenAI's shape, and a count of what is in progress."""
        request_id = uuid.uuid4().hex
        try:
            tenant = self._tenant(request)
            self._enter(tenant)
        except MooncakeError as error:
            return self._counted(request, error_response(error, request_id))
        left = False
        try:
            asked = _Asked(request, await self._body(request), request_id, tenant)
            response = await serve(asked)
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
                self._leave(tenant)
        return self._counted(request, response)

    def _tenant(self, request: Request) -> Tenant:
        return self._tenants.of(request.headers.get("authorization", ""))

    def _enter(self, tenant: Tenant) -> None:
        if not self._takes_requests:
            raise stopping()
        if self._in_progress >= self._settings.max_concurrent:
            raise ServiceUnavailable(
                f"{self._in_progress} requests are in progress, no more are taken", retry_after_s=1
            )
        tenant.enter()
        self._in_progress += 1
        self.metrics.in_progress.inc()

    def _leave(self, tenant: Tenant) -> None:
        tenant.leave()
        self._in_progress -= 1
        self.metrics.in_progress.dec()

    def _counted(self, request: Request, response: Response) -> Response:
        self.metrics.request(request.url.path, response.status_code)
        return response

    async def _body(self, request: Request) -> bytes:
        limit = self._settings.max_body
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for part in request.stream():
                    body += part
                    if len(body) > limit:
                        raise HTTPError(413, "body_too_large", f"the body exceeds {limit} bytes")
        except TimeoutError as error:
            raise HTTPError(408, "body_too_slow", f"the body was not there within {BODY_TIMEOUT_S:g}s") from error
        return bytes(body)

    async def _complete_text(self, asked: _Asked) -> Response:
        wanted = parse(asked.body, CompletionRequest)
        model = await self._model(wanted.model)
        prompts = await self._prompts.of_completion(wanted)
        lengths = [_answer_length(model, prompt, wanted.max_tokens, DEFAULT_MAX_TOKENS) for prompt in prompts]
        return await self._respond(asked, wanted, model, list(zip(prompts, lengths, strict=True)), chat=False)

    async def _complete_chat(self, asked: _Asked) -> Response:
        wanted = parse(asked.body, ChatRequest)
        model = await self._model(wanted.model)
        prompt = await self._prompts.of_chat(wanted)
        length = _answer_length(model, prompt, wanted.max_completion_tokens or wanted.max_tokens, DEFAULT_CHAT_TOKENS)
        return await self._respond(asked, wanted, model, [(prompt, length)], chat=True)

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

    async def _respond(
        self, asked: _Asked, wanted: Common, model: ModelOffer, prompts: Sequence[tuple[Prompt, int]], *, chat: bool
    ) -> Response:
        answer = Answer(
            request_id=asked.request_id,
            choices=self._choices(asked, wanted, model, prompts),
            shape=Shape(
                asked.request_id,
                model.name,
                chat=chat,
                token_ids=bool(wanted.return_token_ids),
                usage=wanted.include_usage,
                logprobs=self._tokenizer().token_bytes if wanted.num_logprobs >= 0 else None,
            ),
            metrics=self.metrics,
            include_usage=wanted.include_usage,
            continuous_usage=wanted.continuous_usage,
            empty_pieces=bool(wanted.return_token_ids) or wanted.num_logprobs >= 0,
            timings=asked.request.headers.get(headers.TIMINGS, "") not in ("", "0"),
        )
        if not wanted.stream:
            return await answer.whole(asked.request)
        return await answer.stream(asked.request, on_end=lambda: self._leave(asked.tenant))

    def _choices(
        self, asked: _Asked, wanted: Common, model: ModelOffer, prompts: Sequence[tuple[Prompt, int]]
    ) -> list[Choice]:
        """`n` choices for each prompt; choice i of a prompt is what seed + i alone would give."""
        remaining_s = timeout_s(asked.request, wanted.timeout, self._settings.request_timeout) - asked.age_s()
        choices: list[Choice] = []
        for number, (prompt, length) in enumerate(prompts):
            for repetition in range(wanted.num_choices):
                index = len(choices)
                generation = Generation(
                    request_id=f"{asked.request_id}-{index}" if index else asked.request_id,
                    model=model,
                    token_ids=prompt.token_ids,
                    sampling=wanted.sampling(length, repetition),
                    tenant=asked.tenant.name,
                    cache_salt=wanted.cache_salt or "",
                    store=not wanted.no_store,
                    priority=wanted.priority or 0,
                    timeout_s=remaining_s,
                    arrived=asked.arrived,
                    by_layer=asked.request.headers.get(headers.KV_TRANSFER, "layers") != "whole",
                )
                completion = Completion(
                    generation, self._tokenizer(), wanted.stops, self.metrics, self._log, echo=prompt.echo
                )
                choices.append(Choice(index, number, len(prompt.token_ids), completion, self._serving))
        return choices


class _Asked:
    """A request that was let in."""

    def __init__(self, request: Request, body: bytes, request_id: str, tenant: Tenant) -> None:
        self.request = request
        self.body = body
        self.request_id = request_id
        self.tenant = tenant
        self.arrived = time.monotonic()
        """When its body was there."""

    def age_s(self) -> float:
        """Since its body was there."""
        return time.monotonic() - self.arrived


def _answer_length(model: ModelOffer, prompt: Prompt, max_tokens: int | None, default: int) -> int:
    """Tokens to generate; none where only an echo is asked for."""
    length = check_length(model, prompt.token_ids, max_tokens or None, default)
    return 0 if max_tokens == 0 else length


def _json(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")


async def _no_route(request: Request, error: Exception) -> Response:
    """Unknown routes and methods, in OpenAI's shape."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = f"{request.method} {request.url.path}: " + ("no such route" if status == 404 else "method not allowed")
    return error_response(HTTPError(status, "not_found" if status == 404 else "method_not_allowed", message), "route")
