"""Where shards lie at both ends."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.p2p.parts import pieces_of, places, shard_span


@given(
    near=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 300), max_size=5),
    shard_bytes=st.integers(1, 120),
)
def test_every_byte_of_an_object_has_its_place(near: list[int], cuts: list[int], shard_bytes: int) -> None:
    size = sum(near)
    content = bytes(index % 251 for index in range(size))
    ends = sorted({min(cut, size) for cut in cuts} | {0, size})
    spans = [(10_000 * number + begin, end - begin) for number, (begin, end) in enumerate(itertools.pairwise(ends))]
    far = {
        address + at: content[begin + at]
        for (address, length), begin in zip(spans, ends, strict=False)
        for at in range(length)
    }
    views = [memoryview(bytearray(length)) for length in near]
    for shard in range(-(-size // shard_bytes)):
        part = shard_span(shard, shard_bytes, size)
        pieces = pieces_of(views, part)
        assert sum(piece.nbytes for piece in pieces) == part.length
        for piece, address in places(pieces, spans, part.address):
            piece[:] = bytes(far[address + at] for at in range(piece.nbytes))
    assert b"".join(views) == content
