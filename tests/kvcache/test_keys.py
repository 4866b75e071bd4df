"""Block keys: what is equal, and above all what is not."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.kvcache.keys import block_key, block_keys, namespace, pool_key, reusable_blocks

SPACE = namespace(b"model")
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=60)


def test_a_key_is_the_digest_of_the_key_before_and_the_tokens() -> None:
    tokens = [1, 2, 3, 0xFFFFFFFF]
    first = hashlib.blake2b(SPACE + struct.pack("<2I", 1, 2), digest_size=16).digest()
    second = hashlib.blake2b(first + struct.pack("<2I", 3, 0xFFFFFFFF), digest_size=16).digest()
    assert block_keys(SPACE, tokens, 2) == [first, second]


def test_known_answers_do_not_change() -> None:
    assert namespace(b"model", tenant="t", cache_salt="s").hex() == "3c40afad2e391412386004ddea4543ba"
    assert [key.hex() for key in block_keys(SPACE, range(5), 2)] == [
        "6d99fce64646232bdffeeb30a34e5ed0",
        "04a4879ccfe9b1f989aa218bc6ff882b",
    ]


@given(TOKENS, TOKENS, st.integers(1, 9))
def test_equal_keys_mean_equal_prefixes(one: list[int], two: list[int], block_tokens: int) -> None:
    keys_one, keys_two = block_keys(SPACE, one, block_tokens), block_keys(SPACE, two, block_tokens)
    for index, (key_one, key_two) in enumerate(zip(keys_one, keys_two, strict=False)):
        end = (index + 1) * block_tokens
        assert (key_one == key_two) == (one[:end] == two[:end])


@given(TOKENS, st.integers(1, 9), st.integers(0, 10))
def test_only_full_blocks_have_keys(tokens: list[int], block_tokens: int, limit: int) -> None:
    assert len(block_keys(SPACE, tokens, block_tokens)) == len(tokens) // block_tokens
    assert block_keys(SPACE, tokens, block_tokens, limit=limit) == block_keys(SPACE, tokens, block_tokens)[:limit]


@given(
    st.lists(
        st.tuples(st.binary(max_size=3), st.text(max_size=3), st.text(max_size=3), st.text(max_size=3)), max_size=8
    )
)
def test_different_fields_are_different_namespaces(fields: list[tuple[bytes, str, str, str]]) -> None:
    spaces = {namespace(print_, tenant=a, cache_salt=b, adapter=c): (print_, a, b, c) for print_, a, b, c in fields}
    assert len(spaces) == len(set(fields))


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 0), (32, 0), (33, 1), (64, 1), (65, 2)])
def test_at_least_one_token_is_computed(tokens: int, blocks: int) -> None:
    assert reusable_blocks(tokens, 32) == blocks


@given(st.binary(min_size=16, max_size=16))
def test_pool_keys_are_reversible(key: bytes) -> None:
    assert block_key(pool_key(key)) == key


@pytest.mark.parametrize("name", ["", "x" * 32, "abc", "model@tp_rank:0@abcdef", "é" * 32])
def test_other_names_are_no_blocks(name: str) -> None:
    assert block_key(name) is None
