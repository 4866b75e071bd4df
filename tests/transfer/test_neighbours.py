"""Pieces that go on at both ends are moved as one: the same bytes, in fewer pieces, never across the end of a region."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mooncake_core.errors import OutOfRange
from mooncake_core.transfer import Endpoint, Kind, Peer, Span
from mooncake_core.transfer.addresses import address_of
from mooncake_core.transfer.peer import TOGETHER_BYTES

REGION = 96
"""Each end has two of them, one after the other, and as much behind them that is not registered."""
UNIT = 4


class End:
    """An endpoint, and its memory."""

    def __init__(self) -> None:
        self.endpoint = Endpoint(transports=["tcp"])
        self.memory = bytearray(3 * REGION)
        self.start = address_of(memoryview(self.memory))
        for number in range(2):
            self.endpoint.register_memory(Span(self.start + number * REGION, REGION))


class Ends:
    def __init__(self) -> None:
        self.here, self.there = End(), End()
        self.peer: Peer = self.here.endpoint.open(self.there.endpoint.name)

    def close(self) -> None:
        self.here.endpoint.close()
        self.there.endpoint.close()


@pytest.fixture(scope="module")
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


Places = list[tuple[int, int, int]]
"""Offset here, offset there, and length, of each piece."""


@st.composite
def places(draw: st.DrawFn) -> Places:
    """Most go on where the one before ended, at one end or at both; none overlaps another; each lies within a region."""
    found: Places = []
    taken: tuple[set[int], set[int]] = set(), set()
    here = there = 0
    for _ in range(draw(st.integers(1, 12))):
        jumps = draw(st.sampled_from(["", "", "", "here", "there", "both"]))
        offsets = st.integers(0, 2 * REGION // UNIT - 1).map(lambda unit: unit * UNIT)
        here = draw(offsets) if jumps in ("here", "both") else here
        there = draw(offsets) if jumps in ("there", "both") else there
        length = draw(st.integers(0, 6)) * UNIT
        spans = [set(range(at, at + length)) for at in (here, there)]
        fits = all(at // REGION == (at + max(length, 1) - 1) // REGION < 2 for at in (here, there))
        if fits and not any(span & known for span, known in zip(spans, taken, strict=True)):
            found.append((here, there, length))
            for span, known in zip(spans, taken, strict=True):
                known |= span
            here, there = here + length, there + length
    return found


@settings(max_examples=60, deadline=None)
@given(places(), st.sampled_from(Kind))
def test_the_same_bytes_as_one_by_one(ends: Ends, where: Places, kind: Kind) -> None:
    here, there = ends.here, ends.there
    near = [here.start + at for at, _, _ in where]
    far = [there.start + at for _, at, _ in where]
    lengths = [length for _, _, length in where]

    def moved(pieces: list[memoryview], addresses: list[int]) -> tuple[bytes, bytes]:
        here.memory[:] = bytes(at % 251 for at in range(len(here.memory)))
        there.memory[:] = bytes(at % 251 ^ 0x55 for at in range(len(there.memory)))
        here.endpoint.move(kind, ends.peer, pieces, addresses)
        return bytes(here.memory), bytes(there.memory)

    together = here.endpoint.neighbours(ends.peer, near, lengths, far)
    assert moved(*together) == moved(here.endpoint.views(near, lengths), far)
    assert sum(piece.nbytes for piece in together[0]) == sum(lengths)


def test_what_goes_on_is_one_piece_up_to_the_end_of_a_region(ends: Ends) -> None:
    here, there = ends.here, ends.there
    offsets = range(0, 2 * REGION, 32)
    pieces, far = here.endpoint.neighbours(
        ends.peer, [here.start + at for at in offsets], [32] * len(offsets), [there.start + at for at in offsets]
    )
    assert [piece.nbytes for piece in pieces] == [REGION, REGION]
    assert far == [there.start, there.start + REGION]
    shifted = [there.start + 32 + at for at in offsets][:5]  # the far region ends first
    pieces, _ = here.endpoint.neighbours(ends.peer, [here.start + at for at in offsets][:5], [32] * 5, shifted)
    assert [piece.nbytes for piece in pieces] == [64, 32, 64]


def test_what_is_not_registered_here_stays_apart(ends: Ends) -> None:
    """Only its own first and last byte are looked at before it is touched."""
    behind, there = ends.here.start + 2 * REGION, ends.there.start
    pieces, _ = ends.here.endpoint.neighbours(ends.peer, [behind, behind + 8], [8, 8], [there, there + 8])
    assert [piece.nbytes for piece in pieces] == [8, 8]
    with pytest.raises(OutOfRange, match="go beyond what was registered"):
        ends.here.endpoint.neighbours(ends.peer, [behind - 16, behind - 8], [8, 16], [there, there + 8])


def test_no_piece_is_longer_than_what_connections_share() -> None:
    with Endpoint(transports=["tcp"]) as here, Endpoint(transports=["tcp"]) as there:
        block = TOGETHER_BYTES // 4
        near, far = here.allocate_memory(6 * block), there.allocate_memory(6 * block)
        starts = [address_of(near.view), address_of(far.view)]
        peer = here.open(there.name)
        offsets = range(0, 6 * block, block)
        ends = [[start + at for at in offsets] for start in starts]
        pieces, _ = here.neighbours(peer, ends[0], [block] * 6, ends[1])
        assert [piece.nbytes for piece in pieces] == [4 * block, 2 * block]
        here.move(Kind.WRITE, peer, pieces, [ends[1][0], ends[1][4]])
