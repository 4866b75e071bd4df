"""The three kinds of answer: text, JSON, and a failure with one of upstream's error codes."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.responses import Response

TEXT: Final = "text/plain; version=0.0.4"
JSON: Final = "application/json; charset=utf-8"

INTERNAL_ERROR: Final = -1
SEGMENT_NOT_FOUND: Final = -101
INVALID_PARAMS: Final = -600
OBJECT_NOT_FOUND: Final = -704
JOB_NOT_FOUND: Final = -1402
TENANT_NOT_REGISTERED: Final = -1701
"""As `mooncake.store` has them."""


def text(body: str | bytes, status: int = 200) -> Response:
    """Plain text."""
    return Response(body, status_code=status, media_type=TEXT)


def json(body: Any, status: int = 200) -> Response:
    """JSON."""
    return Response(msgspec.json.encode(body), status_code=status, media_type=JSON)


def failure(status: int, code: int, message: str) -> Response:
    """Why it was not done."""
    return json({"success": False, "error_code": code, "error_message": message}, status)
