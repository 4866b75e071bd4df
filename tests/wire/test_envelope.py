"""Envelopes come out of frames as they went in, however many share one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.errors import ProtocolError
from mooncake_core.wire import envelope
from mooncake_core.wire.envelope import BUNDLE_BYTES, Cutter, Kind, bundles, pack, unpack

ENVELOPES = st.lists(
    st.tuples(st.sampled_from(Kind), st.integers(0, 2**64 - 1), st.binary(max_size=20), st.binary(max_size=40))
)


@given(ENVELOPES)
def test_envelopes_that_share_a_frame_come_out_in_order(sent: list[tuple[Kind, int, bytes, bytes]]) -> None:
    frames = list(bundles([pack(*envelope) for envelope in sent]))
    assert len(frames) == (1 if sent else 0)
    assert [tuple(envelope) for frame in frames for envelope in unpack([frame])] == sent


def test_bundles_stay_small_and_large_envelopes_go_alone() -> None:
    packed = [pack(Kind.REPLY, number, b"", bytes(BUNDLE_BYTES // 3)) for number in range(7)]
    packed.insert(3, pack(Kind.LAST, 99, b"", bytes(3 * BUNDLE_BYTES)))
    frames = list(bundles(packed))
    assert [len(unpack([frame])) for frame in frames] == [2, 1, 1, 2, 2]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_what_was_cut_off_or_is_something_else_is_refused(cut: int) -> None:
    whole = pack(Kind.REPLY, 1, b"head", b"body")
    with pytest.raises(ProtocolError):
        unpack([whole[:-cut]])
    with pytest.raises(ProtocolError, match="envelopes"):
        unpack([b"?" + whole[1:]])
    with pytest.raises(ProtocolError, match="another version"):
        unpack([b"Q", b"12345678", b"", b""])


def test_an_envelope_that_is_too_long_is_refused_though_it_came_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pack(Kind.REQUEST, 1, b"head", b"x" * 100)
    assert len(Cutter().feed(data)) == 1
    monkeypatch.setattr(envelope, "MAX_MESSAGE_BYTES", 103)
    with pytest.raises(ProtocolError, match="at most 103 bytes"):
        Cutter().feed(data)
