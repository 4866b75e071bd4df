"""The bytes of a single token. Decoding one token alone would lose those that are a part of a character."""

from __future__ import annotations

import re
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE: Final = "\u2581"
"""How SentencePiece vocabularies write a space."""


class _Decoder(Struct, frozen=True):
    """A decoder in tokenizer.json; a Sequence has inner ones."""

    type: str
    decoders: list[_Decoder] = []


class _File(Struct, frozen=True):
    """What is of interest in tokenizer.json."""

    decoder: _Decoder | None = None


class TokenBytes:
    """Of one tokenizer: byte-level vocabularies (GPT-2, Llama 3, Qwen) and SentencePiece ones (Llama 2, Mistral)."""

    def __init__(self, tokenizer: Any, file: Path) -> None:
        self._tokenizer = tokenizer
        self._file = file

    def of(self, token_id: int) -> bytes:
        """Of one token; nothing where the vocabulary has no such token."""
        added = self._added.get(token_id)
        if added is not None:
            return added
        piece: str = self._tokenizer.id_to_token(token_id) or ""
        if "ByteLevel" in self._kinds:
            table = _byte_of()
            return bytes(table[character] for character in piece if character in table)
        if match := _BYTE_TOKEN.fullmatch(piece):
            return bytes.fromhex(match.group(1))
        return piece.replace(_SPACE, " ").encode()

    @cached_property
    def _added(self) -> dict[int, bytes]:
        """Added tokens are written as they are, in any vocabulary."""
        return {
            number: str(token.content).encode() for number, token in self._tokenizer.get_added_tokens_decoder().items()
        }

    @cached_property
    def _kinds(self) -> set[str]:
        """Which decoders the tokenizer has; read when first needed, since the file may be large."""
        decoder = msgspec.json.decode(self._file.read_bytes(), type=_File).decoder
        found: set[str] = set()
        waiting = [decoder] if decoder else []
        while waiting:
            found.add(waiting[-1].type)
            waiting += waiting.pop().decoders
        return found


@cache
def _byte_of() -> dict[str, int]:
    """Character to byte in byte-level vocabularies: printable bytes are themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(0x100 + index): byte for index, byte in enumerate(others)},
    }
