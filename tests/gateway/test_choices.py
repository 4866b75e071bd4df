"""Several choices, echoed prompts and log probabilities, whole and streamed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import openai
import pytest

from mooncake_core.errors import EngineError
from mooncake_core.gateway.logprobs import Scored, chat_logprobs, completion_logprobs
from mooncake_core.testing.gateway import ANSWER, TOKENIZER, RunningGateway, ask, chat, events
from mooncake_core.wire.messages.serving import Logprobs

HALF = -math.log(2)


def streamed(gateway: RunningGateway, body: dict[str, Any], route: str = "/v1/completions") -> list[Any]:
    found = events(gateway.post({**body, "stream": True}, route).text)
    assert found.pop() == "[DONE]"
    return found


def test_choices_have_seeds_of_their_own(gateway: RunningGateway) -> None:
    answer = gateway.post(ask(prompt=["a", "b"], n=3, best_of=3, seed=7)).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert {choice["text"] for choice in answer["choices"]} == {ANSWER}
    by_id = {generation.request_id.partition("-")[2]: generation for generation in gateway.serving.seen}
    assert [by_id[number].sampling.seed for number in ("", "1", "2", "3", "4", "5")] == [7, 8, 9, 7, 8, 9]
    prompts = [TOKENIZER.encode("a")] * 3 + [TOKENIZER.encode("b")] * 3
    assert [by_id[number].token_ids for number in ("", "1", "2", "3", "4", "5")] == prompts


def test_a_prompt_counts_once_however_many_choices_answer_it(gateway: RunningGateway) -> None:
    single = gateway.post(ask()).json()["usage"]
    several = gateway.post(ask(n=3)).json()["usage"]
    assert several["prompt_tokens"] == single["prompt_tokens"]
    assert several["prompt_tokens_details"] == single["prompt_tokens_details"]
    assert several["completion_tokens"] == 3 * single["completion_tokens"]
    assert several["total_tokens"] == several["prompt_tokens"] + several["completion_tokens"]


def test_choices_without_a_seed_differ(gateway: RunningGateway) -> None:
    gateway.post(chat(n=4), "/v1/chat/completions")
    assert len({generation.sampling.seed for generation in gateway.serving.seen}) == 4


def test_choices_are_streamed_side_by_side(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Hi"}], n=3, stream=True, max_tokens=60
    )
    texts, roles, endings = [""] * 3, [""] * 3, [""] * 3
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role or ""
            endings[choice.index] += choice.finish_reason or ""
    assert (texts, roles, endings) == ([ANSWER] * 3, ["assistant"] * 3, ["length"] * 3)


def test_a_choice_that_fails_ends_the_others(gateway: RunningGateway) -> None:
    gateway.serving.error, gateway.serving.error_after = EngineError("broken"), 2
    for stream in (False, True):
        answer = gateway.post(ask(n=4, stream=stream))
        assert "broken" in answer.text
        gateway.wait_until_closed()


@pytest.mark.parametrize("prompt", ["Größe 🙂", TOKENIZER.encode("Größe 🙂")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_is_echoed(gateway: RunningGateway, prompt: str | list[int], stream: bool) -> None:
    body = ask(prompt=prompt, echo=True, stop="word")
    pieces = streamed(gateway, body) if stream else [gateway.post(body).json()]
    text = "".join(piece["choices"][0]["text"] for piece in pieces)
    assert text == "Größe 🙂" + "In the beginning was the "


def test_a_stop_string_in_the_prompt_is_no_end(gateway: RunningGateway) -> None:
    assert gateway.post(ask(prompt="stop here", echo=True, stop="stop")).json()["choices"][0]["text"].endswith(ANSWER)


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_alone_needs_no_cluster(gateway: RunningGateway, stream: bool) -> None:
    body = ask(prompt=["a b", "c"], echo=True, max_tokens=0)
    found = streamed(gateway, body) if stream else [gateway.post(body).json()]
    choices = [choice for piece in found for choice in piece["choices"]]
    assert [(choice["text"], choice["finish_reason"]) for choice in choices] == [("a b", "length"), ("c", "length")]
    assert gateway.serving.seen == []


def test_completions_have_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt="Hello", max_tokens=60, logprobs=3)
    found = answer.choices[0].logprobs
    assert found is not None
    tokens = TOKENIZER.encode(ANSWER)[1:]
    assert found.token_logprobs == [pytest.approx(HALF)] * len(tokens)
    assert found.top_logprobs is not None
    assert found.tokens is not None
    for token, top in zip(found.tokens, found.top_logprobs, strict=True):
        assert top[token] == pytest.approx(HALF)
        assert sorted(top.values(), reverse=True) == [pytest.approx(rank * HALF) for rank in range(1, len(top) + 1)]
    check_offsets(answer.choices[0].text, found.tokens, found.text_offset)


def check_offsets(text: str, tokens: Sequence[str], offsets: Sequence[int] | None) -> None:
    """Each token that is whole characters stands where its offset says."""
    assert offsets is not None
    assert list(offsets) == sorted(offsets)
    whole = [(token, offset) for token, offset in zip(tokens, offsets, strict=True) if not token.startswith("bytes:")]
    assert len(whole) > 5
    for token, offset in whole:
        assert text[offset : offset + len(token)] == token


def test_streamed_log_probabilities_are_those_of_the_whole(gateway: RunningGateway) -> None:
    whole = gateway.post(ask(logprobs=2)).json()["choices"][0]["logprobs"]
    pieces = [piece["choices"][0]["logprobs"] for piece in streamed(gateway, ask(logprobs=2))]
    assert {key: [item for piece in pieces for item in piece[key]] for key in whole} == whole
    assert whole["text_offset"][0] == 0


def test_zero_log_probabilities_are_those_of_the_chosen_tokens(gateway: RunningGateway) -> None:
    found = gateway.post(ask(logprobs=0)).json()["choices"][0]["logprobs"]
    assert all(
        top == {token: pytest.approx(HALF)} for token, top in zip(found["tokens"], found["top_logprobs"], strict=True)
    )
    assert gateway.post(ask()).json()["choices"][0]["logprobs"] is None


def test_chats_have_log_probabilities(client: openai.OpenAI, gateway: RunningGateway) -> None:
    messages: Any = [{"role": "user", "content": "Hi"}]
    answer = client.chat.completions.create(
        model="demo", messages=messages, max_tokens=60, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert b"".join(bytes(token.bytes or []) for token in content).decode() == ANSWER
    assert [len(token.top_logprobs) for token in content] == [2] * len(content)
    assert content[0].top_logprobs[0].token == content[0].token
    pieces = streamed(gateway, chat(logprobs=True), "/v1/chat/completions")
    again = [token for piece in pieces for token in piece["choices"][0]["logprobs"]["content"]]
    assert [token["bytes"] for token in again] == [token.bytes for token in content]
    assert all(token["top_logprobs"] == [] for token in again)


def test_top_logprobs_need_logprobs(gateway: RunningGateway) -> None:
    for body in (chat(top_logprobs=2), chat(logprobs=True, top_logprobs=21)):
        answer = gateway.post(body, "/v1/chat/completions")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "top_logprobs")


def test_an_engine_without_log_probabilities_says_so(gateway: RunningGateway) -> None:
    gateway.serving.knows_logprobs = False
    assert gateway.post(ask()).status_code == 200
    answer = gateway.post(ask(logprobs=1))
    assert answer.status_code == 500
    assert "tells no log probabilities" in answer.json()["error"]["message"]
    gateway.wait_until_closed()


def test_the_token_that_ends_an_answer_has_a_log_probability_but_no_text(gateway: RunningGateway) -> None:
    gateway.serving.answer = [*TOKENIZER.encode("So it is.")[1:], 1]
    gateway.serving.finish_reason = "stop"
    choice = gateway.post(ask(logprobs=0)).json()["choices"][0]
    assert choice["text"] == "So it is."
    assert choice["logprobs"]["tokens"][-1] == "</s>"
    assert choice["logprobs"]["text_offset"][-1] == len(choice["text"])


def test_what_json_cannot_say_is_said_in_words() -> None:
    names = {1: b"a", 2: b"\xf0\x9f", 3: b"a"}
    scored = [Scored(2, 5, Logprobs(chosen=-math.inf, top_token_ids=[1, 3], top=[-0.1, -2.0]))]
    assert completion_logprobs(scored, names.__getitem__) == {
        "tokens": ["bytes:\\xf0\\x9f"],
        "token_logprobs": [-9999.0],
        "top_logprobs": [{"a": -0.1, "bytes:\\xf0\\x9f": -9999.0}],
        "text_offset": [5],
    }
    (token,) = chat_logprobs(scored, names.__getitem__)["content"]
    assert (token["bytes"], [entry["logprob"] for entry in token["top_logprobs"]]) == ([0xF0, 0x9F], [-0.1, -2.0])


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_ends_at_a_stop_string_is_logged_as_that(gateway: RunningGateway, stream: bool) -> None:
    answer = gateway.post(ask(stop=["word"], stream=stream))
    gateway.wait_until_closed()
    assert "word" not in answer.text
    assert gateway.gateway._log.latest(1)[0].outcome == "stop"
