"""The HTTP API on a real server, with a cluster of a few lines behind it."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import uvicorn

from mooncake_core.config.schema import GatewayConfig
from mooncake_core.gateway.app import Gateway
from mooncake_core.gateway.generation import Generation, Step
from mooncake_core.gateway.request_log import RequestLog
from mooncake_core.gateway.tokenizer import Tokenizer
from mooncake_core.inference.models import DEMO_FOLDER
from mooncake_core.telemetry.spans import Spans
from mooncake_core.wire.messages.membership import ModelOffer
from mooncake_core.wire.messages.serving import Logprobs

MODEL = ModelOffer(
    name="demo", fingerprint=b"f" * 16, block_tokens=32, block_bytes=1, max_context_tokens=100, vocab_size=2048
)
TOKENIZER = Tokenizer(DEMO_FOLDER)
ANSWER = "In the beginning was the word. Größe ≥ 3 🙂 end"


class FakeServing:
    """Answers with `answer`; fails, waits and counts as told. Token t has probability 1/2, the ones after it 1/4, 1/8."""

    def __init__(self) -> None:
        self.answer = TOKENIZER.encode(ANSWER)[1:]
        self.finish_reason: Any = "length"
        self.seen: list[Generation] = []
        self.open = 0
        self.error: Exception | None = None
        self.error_after: int | None = None
        self.wait_after: int | None = None
        self.waiting = threading.Event()
        self.knows_logprobs = True
        self.offered = [MODEL]
        self.absent: list[str] = []

    async def models(self) -> list[ModelOffer]:
        return self.offered

    async def missing(self) -> list[str]:
        return self.absent

    async def generate(self, generation: Generation) -> AsyncGenerator[Step, None]:
        self.seen.append(generation)
        self.open += 1
        try:
            if self.error and self.error_after is None:
                raise self.error
            tokens = self.answer[: generation.sampling.max_tokens]
            for index, token in enumerate(tokens):
                if self.wait_after == index:
                    self.waiting.set()
                    await asyncio.sleep(60)
                if self.error and self.error_after == index:
                    raise self.error
                reason = self.finish_reason if index == len(tokens) - 1 else None
                yield Step([token], reason, 32, logprobs=self._logprobs(token, generation))
                await asyncio.sleep(0)
        finally:
            self.open -= 1

    def _logprobs(self, token: int, generation: Generation) -> list[Logprobs]:
        count = generation.sampling.logprobs
        if count < 0 or not self.knows_logprobs:
            return []
        halves = [-(rank + 1) * math.log(2) for rank in range(count)]
        ids = [(token + rank) % MODEL.vocab_size for rank in range(count)]
        return [Logprobs(chosen=-math.log(2), top_token_ids=ids, top=halves)]


class RunningGateway:
    """The gateway in a thread."""

    def __init__(self, tokenizer: Tokenizer = TOKENIZER, **settings: Any) -> None:
        self.serving = FakeServing()
        self.gateway = Gateway(self.serving, GatewayConfig(**settings), lambda: tokenizer, RequestLog(Spans("gateway")))
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()  # whoever connects before the gateway accepts waits
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self.gateway.app(), log_config=None, lifespan="off"))
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))
        self._thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=20)

    def post(self, body: Any, route: str = "/v1/completions", **headers: str) -> httpx.Response:
        """Header names have underscores where HTTP has hyphens."""
        content = body if isinstance(body, str | bytes) else json.dumps(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(route, content=content, headers=named)

    def call(self, function: Callable[[], None]) -> None:
        """Calls a function on the gateway's event loop."""
        called = threading.Event()
        self._loop.call_soon_threadsafe(function)
        self._loop.call_soon_threadsafe(called.set)
        assert called.wait(5)

    def wait_until_closed(self) -> None:
        """Waits until the cluster runs nothing any more."""
        for _ in range(400):
            if self.serving.open == 0:
                return
            threading.Event().wait(0.01)
        raise AssertionError("the request was never closed")

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve([self._listener])

    def stop(self) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


def ask(**options: Any) -> dict[str, Any]:
    """The body of a text completion."""
    return {"model": "demo", "prompt": "Hello", "max_tokens": 60, **options}


def chat(**options: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 60, **options}


def events(text: str) -> list[Any]:
    """The server-sent events of a stream."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return [json.loads(line) if line != "[DONE]" else line for line in lines]
