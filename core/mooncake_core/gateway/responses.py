"""Answers in OpenAI's shape: completions, chunks of a stream, errors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.responses import Response

from mooncake_core.errors import (
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    MooncakeError,
    PeerUnreachable,
    RequestRejected,
    ServiceUnavailable,
)
from mooncake_core.gateway.completion import Piece
from mooncake_core.gateway.generation import Timings

encode: Final = msgspec.json.Encoder().encode
DONE: Final = b"data: [DONE]\n\n"
DEFAULT_RETRY_S: Final = 2.0


class HTTPError(MooncakeError):
    """An error with a status of its own: unknown route or model, body too large, too many requests."""

    code = "http"

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.kind = kind


def status_of(error: BaseException) -> tuple[int, str, str]:
    """(HTTP status, type, code) of an error."""
    match error:
        case HTTPError():
            return error.status, "invalid_request_error", error.kind
        case ContextTooLong():
            return 400, "invalid_request_error", "context_length_exceeded"
        case InvalidRequest():
            return 400, "invalid_request_error", error.code
        case RequestRejected():
            return 429, "rate_limit_error", error.code
        case ServiceUnavailable() | PeerUnreachable():
            return 503, "service_unavailable", error.code
        case DeadlineExceeded():
            return 504, "timeout", error.code
        case MooncakeError():
            return 500, "server_error", error.code
    return 500, "server_error", "internal_error"


def error_body(error: BaseException, request_id: str) -> dict[str, Any]:
    """The body of an error. What nobody expected is not shown; the log has it under the request's id."""
    _, kind, code = status_of(error)
    known = isinstance(error, MooncakeError)
    message = error.message if isinstance(error, MooncakeError) else f"internal error; see the log for {request_id}"
    param = error.detail.get("param") if isinstance(error, MooncakeError) and known else None
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: BaseException, request_id: str) -> Response:
    """The whole answer for an error that came before anything was sent."""
    status, _, _ = status_of(error)
    headers = {"x-request-id": request_id}
    if status in (429, 503):
        detail = error.detail if isinstance(error, MooncakeError) else {}
        headers["retry-after"] = str(max(1, round(detail.get("retry_after_s", DEFAULT_RETRY_S))))
    return Response(
        encode(error_body(error, request_id)), status_code=status, media_type="application/json", headers=headers
    )


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """Token counts."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


class Shape:
    """The two dialects: text completions and chat completions."""

    def __init__(self, request_id: str, model: str, *, chat: bool, token_ids: bool) -> None:
        self._chat = chat
        self._token_ids = token_ids
        self._model = model
        self._id = ("chatcmpl-" if chat else "cmpl-") + request_id
        self._created = int(time.time())

    def whole(self, choices: Sequence[Piece], counts: dict[str, Any], timings: Timings | None = None) -> bytes:
        """An answer at once; each choice is one piece."""
        body = self._head("chat.completion" if self._chat else "text_completion")
        body["choices"] = [self._choice(index, piece) for index, piece in enumerate(choices)]
        body["usage"] = counts
        if timings is not None:
            body["mooncake"] = timings
        return encode(body)

    def chunk(self, index: int, piece: Piece, *, first: bool) -> bytes:
        """A piece of a stream, as a server-sent event."""
        body = self._head("chat.completion.chunk" if self._chat else "text_completion")
        content: dict[str, Any] = {"text": piece.text}
        if self._chat:
            delta = {"content": piece.text} if piece.text or first else {}
            content = {"delta": {"role": "assistant", **delta} if first else delta}
        body["choices"] = [self._with_tokens({"index": index, **content, **_ending(piece)}, piece)]
        return event(body)

    def usage_chunk(self, counts: dict[str, Any]) -> bytes:
        """The last piece of a stream that asked for usage."""
        body = self._head("chat.completion.chunk" if self._chat else "text_completion")
        body["choices"] = []
        body["usage"] = counts
        return event(body)

    def timings_chunk(self, timings: Timings) -> bytes:
        """The last piece of a stream that asked where its time went."""
        body = self._head("chat.completion.chunk" if self._chat else "text_completion")
        body["choices"] = []
        body["mooncake"] = timings
        return event(body)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        content = {"message": {"role": "assistant", "content": piece.text}} if self._chat else {"text": piece.text}
        return self._with_tokens({"index": index, **content, **_ending(piece)}, piece)

    def _with_tokens(self, choice: dict[str, Any], piece: Piece) -> dict[str, Any]:
        return {**choice, "token_ids": piece.token_ids} if self._token_ids else choice


def _ending(piece: Piece) -> dict[str, Any]:
    return {"logprobs": None, "finish_reason": piece.finish_reason}


def event(body: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(body) + b"\n\n"
