"""The HTTP API on a real server, with a cluster of a few lines behind it, and the official client in front."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from mooncake_core.errors import DeadlineExceeded, EngineError, MooncakeError, RequestRejected, ServiceUnavailable
from mooncake_core.testing.gateway import ANSWER, TOKENIZER, RunningGateway, ask, events


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


def test_the_official_client_chats(client: openai.OpenAI, gateway: RunningGateway) -> None:
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


async def test_the_official_async_client_streams_a_chat(gateway: RunningGateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Hi"}], stream=True, max_tokens=60
        )
        deltas = [chunk.choices[0].delta async for chunk in stream]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == ANSWER


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]


def test_several_prompts_are_several_choices(gateway: RunningGateway) -> None:
    whole = gateway.post(ask(prompt=["a", "b", "c"])).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert {choice["text"] for choice in whole["choices"]} == {ANSWER}
    streamed = events(gateway.post(ask(prompt=[[1, 2], [3]], stream=True)).text)
    texts = ["", ""]
    for event in streamed[:-1]:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == [ANSWER, ANSWER]


def test_a_stop_string_cuts_the_text_and_closes_the_request(gateway: RunningGateway) -> None:
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


def test_token_ids_are_returned_on_demand(gateway: RunningGateway) -> None:
    tokens = TOKENIZER.encode(ANSWER)[1:]
    assert gateway.post(ask(return_token_ids=True)).json()["choices"][0]["token_ids"] == tokens
    streamed = events(gateway.post(ask(return_token_ids=True, stream=True)).text)
    assert [token for event in streamed[:-1] for token in event["choices"][0]["token_ids"]] == tokens


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ("{bad", 400, None, "the body is no JSON"),
        (b'{"model": "\xff"}', 400, None, "the body is no JSON"),
        ("[" * 100_000, 400, None, "the body is no JSON"),
        ("[1]", 400, None, "expected a JSON object"),
        ({"model": "demo"}, 400, "prompt", "missing required field"),
        (ask(temprature=1), 400, "temprature", "did you mean temperature?"),
        (ask(logit_bias={"5": 1}), 400, "logit_bias", "not supported yet"),
        (ask(frequency_penalty=0.5), 400, "frequency_penalty", "not supported yet"),
        (ask(presence_penalty=0.5), 400, "presence_penalty", "not supported yet"),
        (ask(n=129), 400, "n", "Expected `int` <= 128"),
        (ask(n=2, best_of=3), 400, "best_of", "expected best_of to be n (2), got 3"),
        (ask(logprobs=6), 400, "logprobs", "Expected `int` <= 5"),
        (ask(echo=True, logprobs=1), 400, "echo", "ask for one of them"),
        (ask(timeout=0), 400, "timeout", "Expected `float` > 0"),
        (ask(timeout=601), 400, "timeout", "at most 600 seconds (gateway.request_timeout), got 601"),
        (ask(stream_options={}), 400, "stream_options", "expected stream to be true"),
        (ask(temperature="hot"), 400, "temperature", "temperature: Expected `float"),
        (ask(top_p=0), 400, "top_p", "Expected `float` > 0"),
        (ask(max_tokens=0), 400, "max_tokens", "expected max_tokens of 1 or more, or echo"),
        (ask(stop=[""]), 400, "stop", "none of them empty"),
        (ask(prompt=["a"] * 65, n=2), 400, "prompt", "at most 128 choices in a request, got 65 prompts times n of 2"),
        (ask(prompt=[]), 400, "prompt", "the prompt is empty"),
        (ask(prompt=[1, "a"]), 400, "prompt", "none of them mixed"),
        (ask(prompt=[2048]), 400, "prompt", "token ids from 0 to 2047"),
        (ask(prompt="word " * 200), 400, "prompt", "the model's context is 100 tokens, the prompt has"),
        (ask(max_tokens=99), 400, "max_tokens", "asks for 99 more"),
        (ask(model="gpt"), 404, "model", "model 'gpt' is not served here; there is: demo"),
        (b"x" * 300_000, 413, None, "the body exceeds 200000 bytes"),
    ],
)
def test_wrong_requests_are_refused_in_openais_shape(body: Any, status: int, param: str | None, message: str) -> None:
    gateway = RunningGateway(max_body=200_000)
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
    gateway: RunningGateway, error: Exception, status: int, code: str, retry: str | None
) -> None:
    gateway.serving.error = error
    for stream in (False, True):
        answer = gateway.post(ask(stream=stream))
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == code
        assert answer.headers.get("retry-after") == retry
        assert "secret" not in answer.text


def test_an_error_within_a_stream_is_an_event(gateway: RunningGateway) -> None:
    gateway.serving.error, gateway.serving.error_after = MooncakeError("the instance died"), 3
    answer = gateway.post(ask(stream=True))
    assert answer.status_code == 200
    assert events(answer.text)[-1]["error"]["message"] == "the instance died"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wait_after", [0, 4])
def test_hanging_up_frees_the_request(gateway: RunningGateway, stream: bool, wait_after: int) -> None:
    gateway.serving.wait_after = wait_after
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{gateway.url}/v1/completions", json=ask(stream=stream), timeout=0.3)
    gateway.wait_until_closed()
    metrics = gateway.http.get("/metrics").text
    assert "mooncake_requests_in_progress 0.0" in metrics


def test_no_more_requests_than_allowed_are_taken() -> None:
    gateway = RunningGateway(max_concurrent=1)
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


def test_health_readiness_and_unknown_routes(gateway: RunningGateway) -> None:
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


def test_a_gateway_that_ends_tells_everybody_why(gateway: RunningGateway) -> None:
    gateway.serving.wait_after = 2
    with gateway.http.stream("POST", "/v1/completions", json=ask(stream=True, max_tokens=60)) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert gateway.serving.waiting.wait(5)
        gateway.call(gateway.gateway.refuse_new)
        refused = gateway.post(ask())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert "the gateway is stopping" in refused.json()["error"]["message"]
        gateway.call(gateway.gateway.end_open)
        last = [line for line in lines if line][-1]
    assert '"type":"service_unavailable"' in last
    gateway.wait_until_closed()
