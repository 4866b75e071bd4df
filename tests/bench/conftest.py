"""An OpenAI-compatible server of a few lines, that misbehaves as told."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


class FakeServer:
    """Answers a prompt with the words of it, one per chunk, and remembers what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.refused: set[str] = set()
        """Body fields answered with 400."""
        self.statuses: dict[int, int] = {}
        """Request number (from 1, the probe included) → status instead of an answer."""
        self.api_key = ""
        self.gap_s = 0.0
        self.tokens_per_word: float | None = 1.0
        """By which prompts are counted; None: they are not."""
        self.cut_off = False
        self.changed_word = ""
        self.mooncake: dict[str, Any] | None = None
        self.under_way = 0
        self.most_under_way = 0

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/completions", self._completions, methods=["POST"]),
            ]
        )

    async def _models(self, request: Request) -> Response:
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return JSONResponse({"error": {"message": "no"}}, status_code=401)
        return JSONResponse({"data": [{"id": "fake"}]})

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if found := sorted(self.refused & set(body)):
            return JSONResponse({"error": {"message": f"unknown parameter {found[0]}"}}, status_code=400)
        status = self.statuses.get(len(self.bodies), 200)
        if status != 200:
            return JSONResponse({"error": {"message": "no", "code": "rejected"}}, status_code=status)
        return StreamingResponse(self._events(body), media_type="text/event-stream")

    async def _events(self, body: dict[str, Any]) -> AsyncGenerator[str, None]:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            words = (body["prompt"].split() * body["max_tokens"])[-body["max_tokens"] :]
            for index, word in enumerate(words):
                await asyncio.sleep(self.gap_s)
                choice = {"index": 0, "text": f" {self.changed_word or word}", "finish_reason": None}
                if body.get("return_token_ids"):
                    choice["token_ids"] = [len(self.changed_word or word)]
                if index == len(words) - 1 and not self.cut_off:
                    choice["finish_reason"] = "length"
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            if self.cut_off:
                return
            usage = {"completion_tokens": len(words), "prompt_tokens_details": {"cached_tokens": 2}}
            if self.tokens_per_word:
                usage["prompt_tokens"] = round(len(body["prompt"].split()) * self.tokens_per_word)
            last = {"choices": [], "usage": usage} | ({"mooncake": self.mooncake} if self.mooncake else {})
            yield f"data: {json.dumps(last)}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.under_way -= 1


class Running:
    """A fake server in a thread."""

    def __init__(self) -> None:
        self.fake = FakeServer()
        # With the protocol named, asyncio turns Nagle's delays off.
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()  # whoever connects before the server accepts waits
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self.fake.app(), log_config=None, lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


@pytest.fixture
def other_server() -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()
