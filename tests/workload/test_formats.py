"""Traces of others, as they are published, and what is said of broken ones."""

from __future__ import annotations

import builtins
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.errors import PluginUnavailable, UsageError
from mooncake_core.workload.formats import FORMATS, ReadSettings
from mooncake_core.workload.request import TraceRequest
from mooncake_core.workload.trace import read_trace, write_trace

MOONCAKE = """\
{"timestamp": 0, "input_length": 1030, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 1500, "input_length": 1024, "output_length": 3, "hash_ids": [0, 1]}
"""
BAILIAN = """\
{"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.1, "input_length": 40, "output_length": 132, "type": "text", "turn": 1, "hash_ids": [9, 9, 4]}
{"chat_id": 160, "parent_chat_id": 159, "timestamp": 62.5, "input_length": 48, "output_length": 7, "type": "text", "turn": 2, "hash_ids": [9, 9, 5]}
{"chat_id": 161, "parent_chat_id": -1, "timestamp": 63.0, "input_length": 16, "output_length": 1, "type": "image", "turn": 1, "hash_ids": [5]}
"""  # noqa: E501
BURST = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,0,0,0,Conversation log
190,GPT-4,417,276,693,API log
"""
BURST2 = """\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5.5,17,3.2,ChatGPT,472,18,490,Conversation log
7.0,,1.0,GPT-4,10,20,30,API log
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
"""
AZURE_2024 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01.017335+00:00,2399,6
"""
LMCACHE = """\
{"timestamp": 1711929600.5, "request_id": "b", "model_name": "m", "chunk_size": 256, "seq_len": 600, "dtypes": ["float16"], "shapes": [[2]], "chunk_hashes": ["0xa", "0xb"]}
{"timestamp": 1711929600.0, "request_id": "a", "model_name": "m", "chunk_size": 256, "seq_len": 300, "dtypes": ["float16"], "shapes": [[2]], "chunk_hashes": ["0xa"]}
{"timestamp": 1711929601.0, "request_id": "c", "model_name": "other", "chunk_size": 256, "seq_len": 256, "dtypes": ["float16"], "shapes": [[2]], "chunk_hashes": ["0xa"]}
"""  # noqa: E501


def read(folder: Path, text: str, *, name: str = "trace", **settings: Any) -> list[TraceRequest]:
    path = folder / name
    path.write_text(text)
    return list(read_trace(str(path), settings=ReadSettings(**settings)))


def test_mooncake(tmp_path: Path) -> None:
    first, second = read(tmp_path, MOONCAKE)
    assert (first.arrival_s, first.input_tokens, first.output_tokens) == (0.0, 1030, 500)
    assert (first.block_ids, first.block_tokens, first.tokens_of(3)) == ((0, 1, 2), 512, 1030)
    assert (second.arrival_s, second.block_ids) == (1.5, (0, 1))


def test_qwen_bailian_blocks_become_prefixes_and_turns_sessions(tmp_path: Path) -> None:
    first, second, third = read(tmp_path, BAILIAN)
    assert first.arrival_s == 61.1
    assert first.block_tokens == 16
    assert len(set(first.block_ids)) == 3  # the same block twice is two prefixes
    assert first.block_ids[:2] == second.block_ids[:2]
    assert third.block_ids[0] not in second.block_ids  # the same block after nothing is another prefix
    assert first.session == second.session != third.session


def test_burstgpt_leaves_out_what_failed(tmp_path: Path) -> None:
    found = read(tmp_path, BURST)
    assert [(one.arrival_s, one.input_tokens, one.output_tokens) for one in found] == [
        (0, 472, 18),
        (40, 1087, 230),
        (185, 417, 276),
    ]
    first, second = read(tmp_path, BURST2)
    assert (first.session, second.session, second.arrival_s) == ("17", None, 1.5)


def test_azure_in_both_years(tmp_path: Path) -> None:
    first, second = read(tmp_path, AZURE)
    assert (first.input_tokens, first.output_tokens, first.arrival_s) == (4808, 10, 0.0)
    assert second.arrival_s == pytest.approx(0.052)
    assert read(tmp_path, AZURE_2024)[1].arrival_s == pytest.approx(1.007405)


def test_lmcache_sorts_names_prefixes_by_model_and_takes_folders(tmp_path: Path) -> None:
    found = read(tmp_path, LMCACHE, answer_tokens=7)
    assert [(one.arrival_s, one.input_tokens, one.output_tokens) for one in found] == [
        (0.0, 300, 7),
        (0.5, 600, 7),
        (1.0, 256, 7),
    ]
    assert found[0].block_ids == found[1].block_ids[:1] != found[2].block_ids
    folder = tmp_path / "logs"
    folder.mkdir()
    for number, line in enumerate(LMCACHE.splitlines()):
        (folder / f"lookup_hashes_20260401_14302{number}.jsonl").write_text(line)
    assert [one.input_tokens for one in read_trace(str(folder))] == [300, 600, 256]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (MOONCAKE + '{"timestamp": 2000, "input_length": 10, "output_length": 1}', "3: hash_ids: expected a value, found no"),
        (MOONCAKE.replace("1024", '"ten"'), '2: input_length: expected int, found "ten"'),
        (MOONCAKE.replace("1024", "0"), "2: input_length: expected int >= 1, found 0"),
        (MOONCAKE.replace("[0, 1]", "[0, 1, 2]"), "2: hash_ids: expected 2 ids, for 1024 tokens in blocks of 512"),
        (MOONCAKE.replace("1500", "1500, oops"), r"2: line: expected a JSON object \(.*\), found"),
        (MOONCAKE.replace('"timestamp": 0', '"timestamp": 1600'), "2: timestamp: expected 1600 or later.*found 1500"),
        (MOONCAKE.replace('"timestamp": 0, ', ""), "1: timestamp: expected a value, found no such field"),
        ("{oops\n", r"1: line: expected a JSON object \(.*\), found {oops"),
        ('{"a": 1}\n', "1: line: expected the fields of a known format, .*qwen-bailian.*found a"),
        ("a,b\n1,2\n", "1: header: expected the fields of a known format, burstgpt .*, azure|; azure.*found a, b"),
        (BAILIAN.replace('"output_length": 7', '"output_length": -7'), "2: output_length: expected int >= 0, found -7"),
        (BURST.replace("1087", "many"), "3: Request tokens: expected a whole number of 0 or more, found many"),
        (BURST.replace("1087,", ""), "3: line: expected 6 cells, found 5"),
        (BURST.replace("45,", "4,"), "3: Timestamp: expected 5 or later.*found 4"),
        (BURST.replace("Response tokens", "Tokens"), "1: header: expected a column 'Response tokens', found Timestamp"),
        (AZURE.replace("2023-11-16 18:17:04", "yesterday"), "3: TIMESTAMP: expected a date such as .*, found yesterday"),
        (AZURE.replace(",4808,", ",0,"), "2: ContextTokens: expected a whole number of 1 or more, found 0"),
        (AZURE + "2024-05-10 00:00:00+00:00,1,1", "4: TIMESTAMP: expected a time zone in all lines, or in none"),
        (LMCACHE.replace('256, "seq_len": 300', '128, "seq_len": 300'), "2: chunk_size: expected 256 as in the first line"),
        (LMCACHE.replace("600", "500"), "1: chunk_hashes: expected 1 hashes at most, .* found 2 hashes"),
        ("\n\n", "expected the requests of a trace, found no line"),
        (BURST.splitlines()[0], "expected the requests of a trace, found none in format burstgpt"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named_by_file_line_and_field(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=f"broken(:| ?).*{problem}"):
        read(tmp_path, text, name="broken")


def test_a_format_may_be_forced(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    with pytest.raises(UsageError, match=r"trace.csv:1: header: expected a column 'Timestamp'"):
        list(read_trace(str(path), "burstgpt"))
    with pytest.raises(UsageError, match=r"expected a format of mooncake, .*lmcache, got parquet"):
        list(read_trace(str(path), "parquet"))


def test_blocks_of_another_size_are_said_to_be(tmp_path: Path) -> None:
    text = json.dumps({"timestamp": 0, "input_length": 100, "output_length": 1, "hash_ids": [1, 2, 3, 4]})
    assert read(tmp_path, text, block_tokens=32)[0].block_tokens == 32
    text = text.replace("}", ', "block_size": 32}')
    assert read(tmp_path, text)[0].block_tokens == 32


def test_compressed_files_and_urls(tmp_path: Path) -> None:
    import fsspec

    compressed = tmp_path / "trace.jsonl.gz"
    compressed.write_bytes(gzip.compress(MOONCAKE.encode()))
    assert len(list(read_trace(str(compressed)))) == 2
    compressed.write_bytes(gzip.compress(MOONCAKE.encode())[:-9])
    with pytest.raises(UsageError, match=r"trace.jsonl.gz: cannot be decompressed"):
        list(read_trace(str(compressed)))
    with fsspec.open("memory://traces/one.jsonl", "wb") as file:
        file.write(MOONCAKE.encode())
    assert len(list(read_trace("memory://traces/one.jsonl"))) == 2
    with pytest.raises(UsageError, match=r"memory://traces/two.jsonl: cannot be read"):
        list(read_trace("memory://traces/two.jsonl"))
    with pytest.raises(UsageError, match="nosuch://x: expected a URL that fsspec knows"):
        list(read_trace("nosuch://x"))
    with pytest.raises(UsageError, match="no.jsonl: cannot be read: No such file"):
        list(read_trace(str(tmp_path / "no.jsonl")))


def test_without_fsspec_a_url_is_a_sentence_and_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.startswith("fsspec"):
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert len(read(tmp_path, MOONCAKE)) == 2
    with pytest.raises(PluginUnavailable, match=r"s3://b/t cannot be read: fsspec is not installed; pip install"):
        list(read_trace("s3://b/t"))


def requests_of(seed: int) -> list[TraceRequest]:
    """Prompts that share prefixes, with blocks of 16 tokens."""
    rng = random.Random(seed)
    chains: list[tuple[int, ...]] = [()]
    fresh, made = 0, []
    for number in range(rng.randrange(1, 12)):
        prompt = rng.randrange(1, 200)
        blocks = -(-prompt // 16)
        shared = rng.choice(chains)[: prompt // 16]
        ids = (*shared, *range(fresh, fresh + blocks - len(shared)))
        fresh += blocks - len(shared)
        chains.append(ids[: prompt // 16])
        session = str(rng.randrange(3)) if rng.random() < 0.5 else None
        made.append(
            TraceRequest(
                arrival_s=number * 0.25,
                input_tokens=prompt,
                output_tokens=rng.randrange(1, 9),
                block_ids=ids,
                block_tokens=16,
                session=session,
            )
        )
    return made


def sharing(requests: list[TraceRequest]) -> list[list[int]]:
    """How many leading blocks each two prompts share."""
    return [
        [next((i for i, (a, b) in enumerate(zip(one.block_ids, two.block_ids, strict=False)) if a != b), -1) for two in requests]
        for one in requests
    ]  # fmt: skip


@given(seed=st.integers(0, 10**6), name=st.sampled_from([name for name, found in FORMATS.items() if found.write]))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, seed: int, name: str) -> None:
    made = requests_of(seed)
    path = tmp_path_factory.mktemp("written") / "trace"
    assert write_trace(path, made, name) == len(made)
    again = list(read_trace(str(path)))
    plain = [(one.arrival_s, one.input_tokens, one.output_tokens) for one in made]
    assert [(one.arrival_s, one.input_tokens, one.output_tokens) for one in again] == plain
    if FORMATS[name].keeps_blocks:
        assert sharing(again) == sharing(made)
        assert {one.block_tokens for one in again} == {16}
    if FORMATS[name].keeps_sessions:
        both = list(zip(made, again, strict=True))
        assert all(
            (one.session == two.session) == (a.session == b.session)
            for one, a in both
            for two, b in both
            if one.session and two.session
        )


def test_lookup_logs_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="format lmcache can only be read; these are written: mooncake, qwen-bailian"):
        write_trace(tmp_path / "log", requests_of(1), "lmcache")
    assert list(tmp_path.iterdir()) == []
