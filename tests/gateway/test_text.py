"""Text in pieces is the text in one piece."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from mooncake_core.errors import InvalidRequest, ModelNotFound
from mooncake_core.gateway.stops import StopStrings
from mooncake_core.gateway.tokenizer import Detokenizer, Tokenizer
from mooncake_core.inference.models import DEMO_FOLDER

TOKENIZER = Tokenizer(DEMO_FOLDER)


@given(
    st.lists(st.text(alphabet="abc", max_size=4), max_size=12),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_cut_wherever_the_pieces_end(pieces: list[str], stops: list[str]) -> None:
    cutter = StopStrings(stops)
    shown = "".join(cutter.add(piece) for piece in pieces)
    shown += "" if cutter.matched else cutter.finish()
    whole = "".join(pieces)
    first = min((position for stop in stops if (position := whole.find(stop)) >= 0), default=None)
    assert cutter.matched == (first is not None)
    # A longer stop string may begin before a shorter one that ends first; what is shown never contains any.
    if first is None:
        assert shown == whole
    else:
        assert whole.startswith(shown)
        assert not any(stop in shown for stop in stops)


@given(st.text(max_size=300))
def test_tokens_one_by_one_give_the_whole_text(text: str) -> None:
    token_ids = TOKENIZER.encode(text)
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.add(token_id) for token_id in token_ids]
    assert "".join(pieces) + detokenizer.finish() == TOKENIZER.decode(token_ids)


@given(st.lists(st.integers(0, 2047), max_size=200))
def test_any_tokens_one_by_one_give_the_whole_text(token_ids: list[int]) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.add(token_id) for token_id in token_ids]
    assert "".join(pieces) + detokenizer.finish() == TOKENIZER.decode(token_ids)


def test_a_character_is_never_cut(tmp_path: object) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.add(token_id) for token_id in TOKENIZER.encode("🙂" * 20)]
    assert "\ufffd" not in "".join(pieces)


def test_a_folder_without_tokenizer_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ModelNotFound, match="tokenizer.json"):
        Tokenizer(tmp_path_factory.mktemp("empty"))


def test_a_model_without_chat_template_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("plain")
    (folder / "tokenizer.json").write_bytes((DEMO_FOLDER / "tokenizer.json").read_bytes())
    with pytest.raises(InvalidRequest, match="no chat template"):
        Tokenizer(folder).encode_chat([{"role": "user", "content": "x"}])


@given(st.text(max_size=60))
def test_the_bytes_of_tokens_are_the_text(text: str) -> None:
    token_ids = TOKENIZER.encode(text)[1:]
    assert b"".join(map(TOKENIZER.token_bytes, token_ids)) == text.encode()


def test_special_tokens_are_written_by_their_names() -> None:
    assert (TOKENIZER.token_bytes(1), TOKENIZER.token_bytes(10**6)) == (b"</s>", b"")


def test_the_bytes_of_sentencepiece_tokens(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "\u2581the": 1, "<0xE2>": 2, "end": 3}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert [tokenizer.token_bytes(number) for number in (1, 2, 3)] == [b" the", b"\xe2", b"end"]
