"""A model's chat template, rendered as transformers' apply_chat_template renders it, without needing transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mooncake_core.errors import InvalidRequest
from mooncake_core.inference.models import read_json

SPECIAL_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TAG: Final = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks where the last message ends. The space at its end tells whether the template strips messages."""


class ChatTemplate:
    """Renders conversations. Thread-safe."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._source = source
        self._template = _environment().from_string(source)
        self._special_tokens = special_tokens

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
        """The template in a model's folder, chat_template.jinja or in tokenizer_config.json; None where it has none."""
        file = folder / "chat_template.jinja"
        source = file.read_text() if file.is_file() else _default(config.get("chat_template"))
        named = {**read_json(folder / "special_tokens_map.json"), **config}
        special = {name: _text(named[name]) for name in SPECIAL_TOKENS if named.get(name)}
        return None if source is None else cls(source, special)

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, Any],
    ) -> str:
        """The conversation as text.

        Raises:
            InvalidRequest: the template refuses the messages or the variables, or loses the message to be continued.
        """
        chat = [dict(message) for message in messages]
        if continue_final_message:
            chat[-1]["content"] += _TAG
        given = {"tools": None, "documents": None, **self._special_tokens, **variables}
        try:
            text = self._template.render(**given, messages=chat, add_generation_prompt=add_generation_prompt)
        except (jinja2.TemplateError, TypeError, ValueError) as error:  # a template may compute with what it is given
            raise InvalidRequest(
                f"the model's chat template refuses the messages: {error}", param="messages"
            ) from error
        return _cut(text, messages[-1]["content"]) if continue_final_message else text


def _cut(text: str, last: str) -> str:
    """The text up to the end of the last message, spaces at its end as the template leaves them."""
    end = text.rfind(_TAG.strip())
    if end < 0 or last.strip() not in text:
        raise InvalidRequest(
            "the model's chat template changes or drops the last message, so it cannot be continued",
            param="continue_final_message",
        )
    return text[:end] if text[end : end + len(_TAG)] == _TAG else text[:end].rstrip()


def _default(templates: Any) -> str | None:
    """A template, or the one called default of several."""
    if isinstance(templates, list):
        named = {entry.get("name"): entry.get("template") for entry in templates if isinstance(entry, dict)}
        templates = named.get("default")
    return templates if isinstance(templates, str) else None


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own would escape what HTML cannot have."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
