"""What wraps every message: who asks what, until when, and how it ended."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Done(Struct, frozen=True, tag=True, gc=False):
    """A reply that has nothing to say but that it was done."""


class Ping(Struct, frozen=True, tag=True, gc=False):
    """Asks whether somebody is there; answered with Done."""


class Failure(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """A request ended in an error; `code` is one of mooncake_core.errors."""

    code: str
    message: str
    detail: dict[str, Any] = {}
