"""Errors as HTTP answers, in OpenAI's shape."""

from __future__ import annotations

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

DEFAULT_RETRY_S: Final = 2.0


class HTTPError(MooncakeError):
    """An error with a status of its own: unknown route or model, wrong API key, body too large."""

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
    message, param = f"internal error; see the log for {request_id}", None
    if isinstance(error, MooncakeError):
        message, param = error.message, error.detail.get("param")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: BaseException, request_id: str) -> Response:
    """The whole answer for an error that came before anything was sent."""
    status, _, _ = status_of(error)
    headers = {"x-request-id": request_id}
    if status in (429, 503):
        detail = error.detail if isinstance(error, MooncakeError) else {}
        headers["retry-after"] = str(max(1, round(detail.get("retry_after_s", DEFAULT_RETRY_S))))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    body = msgspec.json.encode(error_body(error, request_id))
    return Response(body, status_code=status, media_type="application/json", headers=headers)
