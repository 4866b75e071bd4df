"""What a request may ask beside its text: how long it may take, how urgent it is, what is kept, what a stream says."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from mooncake_core.errors import DeadlineExceeded
from mooncake_core.testing.gateway import ANSWER, TOKENIZER, RunningGateway, ask, chat, events


def test_priority_and_storing_reach_the_cluster(gateway: RunningGateway) -> None:
    gateway.post(ask(priority=-5, no_store=True, cache_salt="s"))
    gateway.post(ask())
    urgent, plain = gateway.serving.seen
    assert (urgent.priority, urgent.store, urgent.cache_salt) == (-5, False, "s")
    assert (plain.priority, plain.store, plain.sampling.logprobs) == (0, True, -1)


@pytest.mark.parametrize(
    ("body", "headers", "expected_s"),
    [
        ({}, {}, 30),
        ({"timeout": 20}, {}, 20),
        ({}, {"x_request_timeout": "7.5"}, 7.5),
        ({"timeout": 5}, {"x_request_timeout": "9"}, 5),
        ({"timeout": 9}, {"x_request_timeout": "5"}, 5),
    ],
)
def test_the_smallest_timeout_counts(
    start: Callable[..., RunningGateway], body: dict[str, Any], headers: dict[str, str], expected_s: float
) -> None:
    gateway = start(request_timeout=30.0)
    assert gateway.post(ask(**body), **headers).status_code == 200
    (generation,) = gateway.serving.seen
    assert expected_s - 1 < generation.timeout_s <= expected_s


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf", "31"])
def test_a_timeout_that_cannot_be_is_refused(start: Callable[..., RunningGateway], text: str) -> None:
    answer = start(request_timeout=30.0).post(ask(), x_request_timeout=text)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-request-timeout")


@pytest.mark.parametrize(("stream", "wait_after"), [(False, 0), (False, 4), (True, 0)])
def test_a_request_out_of_time_is_504(gateway: RunningGateway, stream: bool, wait_after: int) -> None:
    gateway.serving.wait_after = wait_after
    before = time.monotonic()
    answer = gateway.post(ask(timeout=0.3, stream=stream))
    assert 0.3 <= time.monotonic() - before < 5
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, DeadlineExceeded.code)
    gateway.wait_until_closed()


def test_a_stream_out_of_time_ends_with_an_error(gateway: RunningGateway) -> None:
    gateway.serving.wait_after = 4
    answer = gateway.post(ask(stream=True), x_request_timeout="0.3")
    assert answer.status_code == 200
    *pieces, last = events(answer.text)
    assert len(pieces) >= 1
    assert last["error"]["type"] == "timeout"
    left = re.search(r"within the ([\d.]+)ms it had left", last["error"]["message"])
    assert left
    assert 0 < float(left[1]) <= 300  # less what it took to come in
    gateway.wait_until_closed()


def test_usage_comes_at_the_end_or_all_the_time(gateway: RunningGateway) -> None:
    def usages(**options: bool) -> list[Any]:
        *pieces, done = events(gateway.post(ask(stream=True, stream_options=options)).text)
        assert done == "[DONE]"
        return [piece.get("usage", "none") for piece in pieces]

    assert set(usages()) == {"none"}
    assert set(usages(continuous_usage_stats=True)) == {"none"}
    *before, last = usages(include_usage=True)
    assert set(before) == {None}
    *sofar, total = usages(include_usage=True, continuous_usage_stats=True)
    assert total == last
    counts = [usage["completion_tokens"] for usage in sofar]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] == total["completion_tokens"]
    assert {usage["prompt_tokens"] for usage in sofar} == {total["prompt_tokens"]}


def test_a_conversation_is_continued_or_left_open(gateway: RunningGateway) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]

    def prompt(**options: Any) -> str:
        answer = gateway.post(chat(messages=messages, **options), "/v1/chat/completions")
        assert answer.json()["choices"][0]["message"]["content"] == ANSWER
        return TOKENIZER.decode(gateway.serving.seen[-1].token_ids)

    assert prompt() == "User: Hi\nAssistant: Well, \nAssistant:"
    assert prompt(add_generation_prompt=False) == "User: Hi\nAssistant: Well, \n"
    assert prompt(continue_final_message=True) == "User: Hi\nAssistant: Well, "


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"echo": True}, "echo"),
    ],
)
def test_what_a_conversation_cannot_have_is_named(gateway: RunningGateway, options: dict[str, Any], param: str) -> None:
    answer = gateway.post(chat(**options), "/v1/chat/completions")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert gateway.serving.seen == []
