"""Text in pieces is the text in one piece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from mooncake_core.errors import InvalidRequest, ModelNotFound
from mooncake_core.gateway.stops import StopStrings
from mooncake_core.gateway.tokenizer import Detokenizer, Tokenizer
from mooncake_core.inference.models import DEMO_FOLDER
from mooncake_core.testing.gateway import RunningGateway, ask

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


SPACE = "\u2581"
WORDS = ["the", "king", "said", "and", "\u00e9", "t", "h", "e", "k", "i", "n", "g", "s", "a", "d", SPACE]
DECODERS = {
    "metaspace": lambda: decoders.Metaspace(),
    # As Llama 2 and Mistral have it.
    "llama": lambda: decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
}


def sentencepiece(folder: Path, kind: str) -> Tokenizer:
    """A tokenizer that writes spaces into its words, and characters it does not know as bytes."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(SPACE + word for word in WORDS), *WORDS]
    scores = [(piece, -10.0 if piece.startswith("<") else -1.0) for piece in dict.fromkeys(pieces)]
    made = tokenizers.Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    made.decoder = DECODERS[kind]()
    made.add_special_tokens([AddedToken("<s>", special=True)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def in_pieces(tokenizer: Tokenizer, before: list[int], token_ids: list[int]) -> str:
    detokenizer = Detokenizer(tokenizer, before)
    return "".join(map(detokenizer.add, token_ids)) + detokenizer.finish()


@pytest.mark.parametrize("kind", DECODERS)
def test_the_space_before_an_answer_is_not_lost(tmp_path: Path, kind: str) -> None:
    tokenizer = sentencepiece(tmp_path, kind)
    prompt = tokenizer.encode("the king")
    answer = tokenizer.encode("said and said")[1:]
    assert in_pieces(tokenizer, prompt, answer) == " said and said"
    assert in_pieces(tokenizer, [], answer) == "said and said"
    whole = tokenizer.encode("the king said and said the king" * 9)
    for cut in range(1, len(whole)):
        assert tokenizer.decode(whole[:cut]) + in_pieces(tokenizer, whole[:cut], whole[cut:]) == tokenizer.decode(whole)


def test_an_answer_is_sent_with_the_space_before_it(start: Callable[..., RunningGateway], tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path, "llama")
    gateway = start(tokenizer=tokenizer)
    gateway.serving.answer = tokenizer.encode("said the king")[1:]
    assert gateway.post(ask(prompt="the king")).json()["choices"][0]["text"] == " said the king"
    echoed = gateway.post(ask(prompt="the king", echo=True)).json()
    assert echoed["choices"][0]["text"] == "the king said the king"


@pytest.mark.parametrize("kind", ["bytes", "llama"])
def test_a_character_that_begins_in_the_prompt_comes_whole(tmp_path: Path, kind: str) -> None:
    tokenizer = TOKENIZER if kind == "bytes" else sentencepiece(tmp_path, kind)
    text = "the \U0001f642 king"
    whole = tokenizer.encode(text)
    for cut in range(1, len(whole)):
        before = tokenizer.decode(whole[:cut])
        rest = in_pieces(tokenizer, whole[:cut], whole[cut:])
        assert before.rstrip("\ufffd") + rest == text
    # A prompt that really ends with this sign does not have it twice.
    assert in_pieces(tokenizer, tokenizer.encode("king \ufffd"), tokenizer.encode("and")[1:]).strip() == "and"


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
