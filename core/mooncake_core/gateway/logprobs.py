"""Log probabilities of generated tokens, in the shapes of OpenAI's two APIs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mooncake_core.wire.messages.serving import Logprobs

LOWEST: Final = -9999.0
"""JSON has no infinity."""
TokenBytesOf = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Scored:
    """A generated token, what the model thought of it, and where in the text it begins."""

    token_id: int
    text_offset: int
    logprobs: Logprobs


def completion_logprobs(scored: Sequence[Scored], bytes_of: TokenBytesOf) -> dict[str, Any]:
    """As /v1/completions has them. The chosen token is among the top ones, in addition where it is none of them."""
    return {
        "tokens": [_text(bytes_of(token.token_id)) for token in scored],
        "token_logprobs": [max(token.logprobs.chosen, LOWEST) for token in scored],
        "top_logprobs": [_top(token, bytes_of) for token in scored],
        "text_offset": [token.text_offset for token in scored],
    }


def chat_logprobs(scored: Sequence[Scored], bytes_of: TokenBytesOf) -> dict[str, Any]:
    """As /v1/chat/completions has them."""
    content = [
        {
            **_entry(token.token_id, token.logprobs.chosen, bytes_of),
            "top_logprobs": [_entry(*ranked, bytes_of) for ranked in _ranked(token.logprobs)],
        }
        for token in scored
    ]
    return {"content": content, "refusal": None}


def _ranked(logprobs: Logprobs) -> list[tuple[int, float]]:
    return list(zip(logprobs.top_token_ids, logprobs.top, strict=True))


def _top(token: Scored, bytes_of: TokenBytesOf) -> dict[str, float]:
    found: dict[str, float] = {}
    for token_id, value in [*_ranked(token.logprobs), (token.token_id, token.logprobs.chosen)]:
        found.setdefault(
            _text(bytes_of(token_id)), max(value, LOWEST)
        )  # of tokens with equal text the most probable one
    return found


def _entry(token_id: int, logprob: float, bytes_of: TokenBytesOf) -> dict[str, Any]:
    data = bytes_of(token_id)
    return {"token": _text(data), "logprob": max(logprob, LOWEST), "bytes": list(data)}


def _text(data: bytes) -> str:
    """A part of a character is written as its bytes, as OpenAI does."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
