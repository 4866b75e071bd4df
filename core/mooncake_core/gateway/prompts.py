"""What clients ask becomes tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from mooncake_core.gateway.requests import ChatRequest, CompletionRequest
from mooncake_core.gateway.tokenizer import Tokenizer

ON_LOOP_CHARACTERS: Final = 2000
ON_LOOP_TOKENS: Final = 1000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens, and the text that precedes the answer where the prompt is to be echoed."""

    token_ids: list[int]
    echo: str = ""


class Prompts:
    """Tokenizes. Long texts go to a thread: they must not hold up the tokens of others."""

    def __init__(self, tokenizer: Callable[[], Tokenizer]) -> None:
        self._tokenizer = tokenizer

    async def of_completion(self, wanted: CompletionRequest) -> list[Prompt]:
        """One per prompt of the request."""
        return [await self._prompt(prompt, echo=bool(wanted.echo)) for prompt in wanted.prompts()]

    async def of_chat(self, wanted: ChatRequest) -> Prompt:
        """The conversation as the model's template writes it."""
        messages = [message.as_template_input() for message in wanted.messages]

        def encode() -> list[int]:
            return self._tokenizer().encode_chat(
                messages,
                add_generation_prompt=wanted.asks_for_turn,
                continue_final_message=wanted.continue_final_message,
                variables=wanted.chat_template_kwargs or {},
            )

        short = sum(len(message["content"]) for message in messages) < ON_LOOP_CHARACTERS
        return Prompt(await _run(encode, short=short))

    async def _prompt(self, prompt: str | list[int], *, echo: bool) -> Prompt:
        if isinstance(prompt, str):
            token_ids = await _run(lambda: self._tokenizer().encode(prompt), short=len(prompt) < ON_LOOP_CHARACTERS)
            return Prompt(token_ids, prompt if echo else "")
        if not echo:
            return Prompt(prompt)
        text = await _run(lambda: self._tokenizer().decode(prompt), short=len(prompt) < ON_LOOP_TOKENS)
        return Prompt(prompt, text)


async def _run(work: Callable[[], T], *, short: bool) -> T:
    return work() if short else await asyncio.to_thread(work)
