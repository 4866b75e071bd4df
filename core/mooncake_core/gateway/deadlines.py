"""How long a request may take."""

from __future__ import annotations

import math

from starlette.requests import Request

from mooncake_core.errors import InvalidRequest
from mooncake_core.gateway.headers import REQUEST_TIMEOUT


def timeout_s(request: Request, field: float | None, longest: float) -> float:
    """Seconds that a request asks for, in its body or its header, the smaller of both; else the configured time.

    Raises:
        InvalidRequest: no positive number, or more than is configured.
    """
    asked = {"timeout": field, REQUEST_TIMEOUT: _header(request.headers.get(REQUEST_TIMEOUT))}
    found = longest
    for name, seconds in asked.items():
        if seconds is None:
            continue
        if seconds > longest:
            raise InvalidRequest(
                f"expected {name} of at most {longest:g} seconds (gateway.request_timeout), got {seconds:g}", param=name
            )
        found = min(found, seconds)
    return found


def _header(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest(f"expected {REQUEST_TIMEOUT} to be seconds above 0, got {text!r}", param=REQUEST_TIMEOUT)
    return seconds
