"""Answers in OpenAI's shape: completions, chunks of a stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from mooncake_core.gateway.completion import Piece
from mooncake_core.gateway.generation import Timings
from mooncake_core.gateway.logprobs import TokenBytesOf, chat_logprobs, completion_logprobs

encode: Final = msgspec.json.Encoder().encode
DONE: Final = b"data: [DONE]\n\n"


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

    def __init__(
        self, request_id: str, model: str, *, chat: bool, token_ids: bool, usage: bool, logprobs: TokenBytesOf | None
    ) -> None:
        """`token_ids`: say them; `usage`: each chunk has the key; `logprobs`: how tokens are written, None for none."""
        self._chat = chat
        self._token_ids = token_ids
        self._usage = usage
        self._logprobs = logprobs
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

    def chunk(self, index: int, piece: Piece, counts: dict[str, Any] | None, *, first: bool) -> bytes:
        """A piece of a stream, as a server-sent event; with the token counts so far, if any."""
        body = self._chunk_head()
        content: dict[str, Any] = {"text": piece.text}
        if self._chat:
            delta = {"content": piece.text} if piece.text or first else {}
            content = {"delta": {"role": "assistant", **delta} if first else delta}
        body["choices"] = [self._with_details(index, content, piece)]
        if self._usage:
            body["usage"] = counts
        return event(body)

    def usage_chunk(self, counts: dict[str, Any]) -> bytes:
        """The last piece of a stream that asked for usage."""
        return event({**self._chunk_head(), "choices": [], "usage": counts})

    def timings_chunk(self, timings: Timings) -> bytes:
        """The last piece of a stream that asked where its time went."""
        return event({**self._chunk_head(), "choices": [], "mooncake": timings})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _chunk_head(self) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self._chat else "text_completion")

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        content = {"message": {"role": "assistant", "content": piece.text}} if self._chat else {"text": piece.text}
        return self._with_details(index, content, piece)

    def _with_details(self, index: int, content: dict[str, Any], piece: Piece) -> dict[str, Any]:
        logprobs = None
        if self._logprobs is not None:
            logprobs = (chat_logprobs if self._chat else completion_logprobs)(piece.scored, self._logprobs)
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": piece.finish_reason}
        return {**choice, "token_ids": piece.token_ids} if self._token_ids else choice


def event(body: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(body) + b"\n\n"
