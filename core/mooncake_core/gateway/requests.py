"""What clients may send: parsed, checked, and turned into sampling. Every refusal names the field."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Mapping, Set
from functools import cache
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from mooncake_core.errors import InvalidRequest
from mooncake_core.wire.messages.serving import Sampling

DEFAULT_MAX_TOKENS: Final = 16
DEFAULT_CHAT_TOKENS: Final = 1024
"""Memory for a whole answer is reserved before it begins: less than the rest of the context, which OpenAI's API gives."""
MAX_STOPS: Final = 16
MOST_CHOICES: Final = 128
"""Prompts times n, of one request."""

Temperature = Annotated[float, Meta(ge=0, le=2)]
Probability = Annotated[float, Meta(gt=0, le=1)]
Positive = Annotated[int, Meta(ge=1)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Choices = Annotated[int, Meta(ge=1, le=128)]
Priority = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
Seconds = Annotated[float, Meta(gt=0)]

UNSUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": (),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "response_format": ({"type": "text"},),
}
"""OpenAI's parameters that are not served, with the values that ask for nothing (null always does)."""
IGNORED: Final = frozenset({"user", "metadata", "store", "service_tier", "parallel_tool_calls"})
"""Parameters without an influence on the answer."""
TEMPLATE_NAMES: Final = frozenset({"messages", "add_generation_prompt", "continue_final_message"})
"""What a chat template gets anyway."""


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream says beside its text."""

    include_usage: bool = False
    """A last event has the token counts."""
    continuous_usage_stats: bool = False
    """With include_usage: each event has those so far."""


class Common(Struct, frozen=True, kw_only=True):
    """What both kinds of request have."""

    model: str
    n: Choices | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    """Requests with another salt share no cache with this one."""
    no_store: bool | None = None
    """Read cached blocks, and leave none behind."""
    priority: Priority | None = None
    """Lower is earlier."""
    timeout: Seconds | None = None
    """Seconds until the request ends with an error."""
    return_token_ids: bool | None = None

    @property
    def stops(self) -> list[str]:
        """Stop strings."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def num_choices(self) -> int:
        """Answers per prompt."""
        return self.n or 1

    @property
    def num_logprobs(self) -> int:
        """How many most probable tokens are to be reported beside the chosen one; -1 reports nothing."""
        return -1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats

    def check(self) -> None:
        """Refuses what is wrong only together.

        Raises:
            InvalidRequest: names one of the fields.
        """
        if len(self.stops) > MAX_STOPS or "" in self.stops:
            raise InvalidRequest(f"expected at most {MAX_STOPS} stop strings, none of them empty", param="stop")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options are for streams: expected stream to be true", param="stream_options")

    def sampling(self, max_tokens: int, choice: int = 0) -> Sampling:
        """How to choose the tokens of a choice; without a seed a random one is drawn."""
        seed = secrets.randbits(63) if self.seed is None else self.seed + choice
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=max(0, self.top_k or 0),
            seed=seed,
            max_tokens=max_tokens,
            ignore_eos=bool(self.ignore_eos),
            stop_token_ids=self.stop_token_ids or [],
            logprobs=self.num_logprobs,
        )


class CompletionRequest(Common, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    best_of: Choices | None = None
    echo: bool | None = None
    """The text begins with the prompt."""
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None

    @property
    def num_logprobs(self) -> int:
        return -1 if self.logprobs is None else self.logprobs

    def check(self) -> None:
        super().check()
        if self.best_of not in (None, self.num_choices):
            raise InvalidRequest(f"expected best_of to be n ({self.num_choices}), got {self.best_of}", param="best_of")
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest(
                "expected max_tokens of 1 or more, or echo: there is no answer else", param="max_tokens"
            )
        if self.echo and self.logprobs is not None:
            raise InvalidRequest(
                "echo with logprobs asks for the prompt's log probabilities, which are not computed: ask for one of them",
                param="echo",
            )

    def prompts(self) -> list[str | list[int]]:
        """At least one.

        Raises:
            InvalidRequest: texts, tokens and token lists are mixed, or there are too many.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        kinds = {type(item) for item in self.prompt}
        if kinds != {int} and len(self.prompt) * self.num_choices > MOST_CHOICES:
            raise InvalidRequest(
                f"expected at most {MOST_CHOICES} choices in a request, got {len(self.prompt)} prompts times n of "
                f"{self.num_choices}: send several requests",
                param="prompt",
            )
        if kinds <= {int}:
            return [[item for item in self.prompt if isinstance(item, int)]]
        if len(kinds) != 1:
            raise InvalidRequest("expected text, texts, tokens, or lists of tokens, none of them mixed", param="prompt")
        return [item for item in self.prompt if not isinstance(item, int)]


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """The only kind of content part a language model without eyes takes."""

    text: str


class ChatMessage(Struct, frozen=True):
    """One turn."""

    role: str
    content: str | list[TextPart]
    name: str | None = None

    def as_template_input(self) -> dict[str, str]:
        """What chat templates expect."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class ChatRequest(Common, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    add_generation_prompt: bool | None = None
    """Whether the template asks for the assistant's turn; by default unless continue_final_message."""
    continue_final_message: bool = False
    """The answer continues the last message."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the model's chat template."""

    @property
    def num_logprobs(self) -> int:
        return (self.top_logprobs or 0) if self.logprobs else -1

    @property
    def asks_for_turn(self) -> bool:
        """Whether the prompt ends with the beginning of the assistant's turn."""
        return not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("expected logprobs to be true where top_logprobs is given", param="top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequest(
                "the last message is continued, or a new one begins: set only one of continue_final_message and "
                "add_generation_prompt",
                param="add_generation_prompt",
            )
        for name in self.chat_template_kwargs or {}:
            if name in TEMPLATE_NAMES:
                raise InvalidRequest(f"{name} is a parameter of its own", param="chat_template_kwargs")


R = TypeVar("R", CompletionRequest, ChatRequest)


def parse(body: bytes, kind: type[R]) -> R:
    """The request in a body.

    Raises:
        InvalidRequest: malformed JSON, an unknown or unsupported parameter, or a value that cannot be.
    """
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is no JSON: {error}", param=None) from error
    if not isinstance(raw, dict):
        raise InvalidRequest("expected a JSON object", param=None)
    known = _names(kind)
    for name in list(raw):
        if name not in known:
            _check_unknown(name, raw.pop(name), known)
    try:
        request = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        param = place.strip("`.")
        raise InvalidRequest(f"{param}: {message}" if param else message, param=param or _named(message)) from error
    request.check()
    return request


@cache
def _names(kind: type[Struct]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind))


def _check_unknown(name: str, value: Any, known: Set[str]) -> None:
    if name in IGNORED or (name in UNSUPPORTED and (value is None or value in UNSUPPORTED[name])):
        return
    if name in UNSUPPORTED:
        raise InvalidRequest(f"{name} is not supported yet, got {value!r}", param=name)
    close = difflib.get_close_matches(name, [*known, *UNSUPPORTED], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InvalidRequest(f"unknown parameter {name}{hint}", param=name)


def _named(message: str) -> str | None:
    """The field in "Object missing required field `model`"."""
    parts = message.split("`")
    return parts[1] if len(parts) > 1 else None
