"""The HTTP API on a real server, with a cluster of a few lines behind it, and the official client in front."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from mooncake_core.config.schema import GatewayConfig
from mooncake_core.errors import DeadlineExceeded, EngineError, MooncakeError, RequestRejected, ServiceUnavailable
from mooncake_core.gateway.app import Gateway
from mooncake_core.gateway.generation import Generation, Step
from mooncake_core.gateway.request_log import RequestLog
from mooncake_core.gateway.tokenizer import Tokenizer
from mooncake_core.inference.models import DEMO_FOLDER
from mooncake_core.telemetry.spans import Spans
from mooncake_core.wire.messages.membership import ModelOffer

MODEL = ModelOffer(
    name="demo", fingerprint=b"f" * 16, block_tokens=32, block_bytes=1, max_context_tokens=100, vocab_size=2048
)
TOKENIZER = Tokenizer(DEMO_FOLDER)
ANSWER = "In the beginning was the word. Größe ≥ 3 🙂 end"


class FakeServing:
    """Answers with ANSWER; fails, waits and counts as told."""

    def __init__(self) -> None:
        self.seen: list[Generation] = []
        self.open = 0
        self.error: Exception | None = None
        self.error_after: int | None = None
        self.wait_after: int | None = None
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
            tokens = TOKENIZER.encode(ANSWER)[1 : 1 + generation.sampling.max_tokens]
            for index, token in enumerate(tokens):
                if self.wait_after == index:
                    await asyncio.sleep(60)
                if self.error and self.error_after == index:
                    raise self.error
                last = index == len(tokens) - 1
                yield Step([token], "length" if last else None, 32)
                await asyncio.sleep(0)
        finally:
            self.open -= 1


class Running:
    """The gateway in a thread."""

    def __init__(self, **limits: Any) -> None:
        self.serving = FakeServing()
        gateway = Gateway(self.serving, GatewayConfig(**limits), lambda: TOKENIZER, RequestLog(Spans("gateway")))
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(gateway.app(), log_config=None, lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))
        self._thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=20)

    def post(self, body: Any, route: str = "/v1/completions") -> httpx.Response:
        content = body if isinstance(body, str | bytes) else json.dumps(body)
        return self.http.post(route, content=content)

    def wait_until_closed(self) -> None:
        for _ in range(400):
            if self.serving.open == 0:
                return
            threading.Event().wait(0.01)
        raise AssertionError("the request was never closed")

    def stop(self) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


@pytest.fixture
def gateway() -> Iterator[Running]:
    made = Running()
    yield made
    made.stop()


@pytest.fixture
def client(gateway: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(**options: Any) -> dict[str, Any]:
    return {"model": "demo", "prompt": "Hello", "max_tokens": 60, **options}


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return [json.loads(line) if line != "[DONE]" else line for line in lines]


def test_the_official_client_completes(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt="Hello", max_tokens=60)
    assert answer.choices[0].text == " " + ANSWER or answer.choices[0].text == ANSWER
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 32
    assert answer.usage.completion_tokens == len(TOKENIZER.encode(ANSWER)) - 1


def test_the_official_client_streams(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="demo", prompt="Hello", max_tokens=60, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 0


def test_the_official_client_chats(client: openai.OpenAI, gateway: Running) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        ],
        max_completion_tokens=60,
    )
    assert answer.choices[0].message.content == ANSWER
    prompt = TOKENIZER.decode(gateway.serving.seen[0].token_ids)
    assert prompt == "System: Be brief.\nUser: Hi\nAssistant:"


async def test_the_official_async_client_streams_a_chat(gateway: Running) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Hi"}], stream=True, max_tokens=60
        )
        deltas = [chunk.choices[0].delta async for chunk in stream]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == ANSWER


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]


def test_several_prompts_are_several_choices(gateway: Running) -> None:
    whole = gateway.post(ask(prompt=["a", "b", "c"])).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert {choice["text"] for choice in whole["choices"]} == {ANSWER}
    streamed = events(gateway.post(ask(prompt=[[1, 2], [3]], stream=True)).text)
    texts = ["", ""]
    for event in streamed[:-1]:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == [ANSWER, ANSWER]


def test_a_stop_string_cuts_the_text_and_closes_the_request(gateway: Running) -> None:
    for stream in (False, True):
        answer = gateway.post(ask(stop=["the word", "zzz"], stream=stream))
        choices = (
            [event["choices"][0] for event in events(answer.text) if event != "[DONE]"]
            if stream
            else answer.json()["choices"]
        )
        assert "".join(choice["text"] for choice in choices) == "In the beginning was "
        assert choices[-1]["finish_reason"] == "stop"
        gateway.wait_until_closed()


def test_token_ids_are_returned_on_demand(gateway: Running) -> None:
    tokens = TOKENIZER.encode(ANSWER)[1:]
    assert gateway.post(ask(return_token_ids=True)).json()["choices"][0]["token_ids"] == tokens
    streamed = events(gateway.post(ask(return_token_ids=True, stream=True)).text)
    assert [token for event in streamed[:-1] for token in event["choices"][0]["token_ids"]] == tokens


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ("{bad", 400, None, "the body is no JSON"),
        ("[1]", 400, None, "expected a JSON object"),
        ({"model": "demo"}, 400, "prompt", "missing required field"),
        (ask(temprature=1), 400, "temprature", "did you mean temperature?"),
        (ask(logprobs=3), 400, "logprobs", "not supported yet"),
        (ask(n=2), 400, "n", "not supported yet"),
        (ask(temperature="hot"), 400, "temperature", "Expected `float"),
        (ask(top_p=0), 400, "top_p", "Expected `float` > 0"),
        (ask(max_tokens=0), 400, "max_tokens", "Expected `int` >= 1"),
        (ask(stop=[""]), 400, "stop", "none of them empty"),
        (ask(prompt=[]), 400, "prompt", "the prompt is empty"),
        (ask(prompt=[1, "a"]), 400, "prompt", "none of them mixed"),
        (ask(prompt=[2048]), 400, "prompt", "token ids from 0 to 2047"),
        (ask(prompt="word " * 200), 400, "prompt", "the model's context is 100 tokens, the prompt has"),
        (ask(max_tokens=99), 400, "max_tokens", "asks for 99 more"),
        (ask(model="gpt"), 404, "model", "model 'gpt' is not served here; there is: demo"),
        (b"x" * 3000, 413, None, "the body exceeds 2000 bytes"),
    ],
)
def test_wrong_requests_are_refused_in_openais_shape(body: Any, status: int, param: str | None, message: str) -> None:
    gateway = Running(max_body=2000)
    try:
        answer = gateway.post(body)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert message in error["message"]
        assert (error["param"], error["type"]) == (param, "invalid_request_error")
        assert answer.headers["x-request-id"]
        assert gateway.serving.seen == []
    finally:
        gateway.stop()


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (RequestRejected("busy", retry_after_s=7.2), 429, "rejected", "7"),
        (ServiceUnavailable("nobody", retry_after_s=0.1), 503, "unavailable", "1"),
        (DeadlineExceeded("late"), 504, "deadline_exceeded", None),
        (EngineError("broken"), 500, "engine", None),
        (ZeroDivisionError("secret"), 500, "internal_error", None),
    ],
)
def test_errors_of_the_cluster_have_a_status(
    gateway: Running, error: Exception, status: int, code: str, retry: str | None
) -> None:
    gateway.serving.error = error
    for stream in (False, True):
        answer = gateway.post(ask(stream=stream))
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == code
        assert answer.headers.get("retry-after") == retry
        assert "secret" not in answer.text


def test_an_error_within_a_stream_is_an_event(gateway: Running) -> None:
    gateway.serving.error, gateway.serving.error_after = MooncakeError("the instance died"), 3
    answer = gateway.post(ask(stream=True))
    assert answer.status_code == 200
    assert events(answer.text)[-1]["error"]["message"] == "the instance died"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wait_after", [0, 4])
def test_hanging_up_frees_the_request(gateway: Running, stream: bool, wait_after: int) -> None:
    gateway.serving.wait_after = wait_after
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{gateway.url}/v1/completions", json=ask(stream=stream), timeout=0.3)
    gateway.wait_until_closed()
    metrics = gateway.http.get("/metrics").text
    assert "mooncake_requests_in_progress 0.0" in metrics


def test_no_more_requests_than_allowed_are_taken() -> None:
    gateway = Running(max_concurrent=1)
    try:
        gateway.serving.wait_after = 2
        with httpx.stream("POST", f"{gateway.url}/v1/completions", json=ask(stream=True)) as first:
            assert first.status_code == 200
            second = gateway.post(ask())
            assert second.status_code == 503
            assert second.headers["retry-after"] == "1"
        gateway.wait_until_closed()
        gateway.serving.wait_after = None
        assert gateway.post(ask()).status_code == 200
    finally:
        gateway.stop()


def test_health_readiness_and_unknown_routes(gateway: Running) -> None:
    assert gateway.http.get("/health").json() == {"status": "ok"}
    assert gateway.http.get("/ready").status_code == 200
    gateway.serving.absent = ["no decode instance has joined"]
    gateway.serving.offered = []
    ready = gateway.http.get("/ready")
    assert (ready.status_code, ready.json()["missing"]) == (503, ["no decode instance has joined"])
    answer = gateway.post(ask())
    assert answer.status_code == 503
    assert "no decode instance" in answer.json()["error"]["message"]
    for method, route, status in (("GET", "/nope", 404), ("GET", "/v1/completions", 405)):
        answer = gateway.http.request(method, route)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"
