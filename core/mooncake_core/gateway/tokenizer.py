"""Text to tokens and back, by the model's own tokenizer.json and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tokenizers import Tokenizer as FastTokenizer

from mooncake_core.errors import InvalidRequest, ModelNotFound
from mooncake_core.gateway.chat_template import ChatTemplate
from mooncake_core.gateway.token_bytes import TokenBytes
from mooncake_core.inference.models import read_json

REPLACEMENT: Final = "\ufffd"
CONTEXT_TOKENS: Final = 8
"""More than a character has, and more than any decoder looks back."""


class Tokenizer:
    """Of one model. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ModelNotFound(f"{folder} has no tokenizer.json: only fast tokenizers can be served")
        self._tokenizer: Any = FastTokenizer.from_file(str(file))
        config = read_json(folder / "tokenizer_config.json")
        self._template = ChatTemplate.of(folder, config)
        self._bytes = TokenBytes(self._tokenizer, file)

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt, special ones added as the tokenizer does."""
        return list(self._tokenizer.encode(text).ids)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[int]:
        """Tokens of a conversation, as the model's chat template writes it; `variables` are handed to the template.

        Raises:
            InvalidRequest: the model has no chat template, or it refuses these messages.
        """
        if self._template is None:
            raise InvalidRequest("the model has no chat template: use /v1/completions", param="messages")
        text = self._template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for, special ones by their name; it may be a part of a character."""
        return self._bytes.of(token_id)


class Detokenizer:
    """Text of a growing list of tokens, in pieces that never end within a character.

    What was given out is decoded again only as far as context for what follows: the tokens since the last piece, and the
    piece's own.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        """`before` are tokens whose text is known to whoever reads the pieces, such as a prompt's: decoders of SentencePiece
        vocabularies drop a space where the tokens begin."""
        self._tokenizer = tokenizer
        self._token_ids = list(before[-CONTEXT_TOKENS:])
        self._before = tokenizer.decode(self._token_ids) if self._token_ids else ""
        self._given = len(self._before)

    def add(self, token_id: int) -> str:
        """The text that is certain by now and was not given out before."""
        self._token_ids.append(token_id)
        text = self._tokenizer.decode(self._token_ids)
        if text.endswith(REPLACEMENT):
            return ""
        piece = self._take(text)
        self._forget(text)
        return piece

    def finish(self) -> str:
        """What is left, incomplete characters included."""
        return self._take(self._tokenizer.decode(self._token_ids))

    def _take(self, text: str) -> str:
        """What follows in it on what was given out."""
        if self._before and not text.startswith(self._before):  # it ended within a character, which is whole now
            self._given = len(self._before.rstrip(REPLACEMENT))
        self._before = ""
        piece, self._given = text[self._given :], len(text)
        return piece

    def _forget(self, text: str) -> None:
        """Keeps decoding linear: old tokens go as soon as the rest decodes to the same end without them."""
        if len(self._token_ids) < 32:
            return
        recent = self._token_ids[-CONTEXT_TOKENS:]
        tail = self._tokenizer.decode(recent)
        if text.endswith(tail) and not tail.startswith(REPLACEMENT):
            self._token_ids, self._given = recent, len(tail)
