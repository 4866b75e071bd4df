"""What lies in a segment reads back as what was written, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.errors import InvalidRequest
from mooncake_core.store.layout import (
    SLOT_BYTES,
    Header,
    Slot,
    SlotState,
    header_bytes,
    pack_header,
    pack_slot,
    unpack_header,
    unpack_slot,
)

U64 = st.integers(0, 2**64 - 1)
NAME = st.text(min_size=1, max_size=100)


@given(st.sampled_from([SlotState.RESERVED, SlotState.COMMITTED]), U64, U64, U64, U64)
def test_slots_read_back(state: SlotState, number: int, offset: int, size: int, checksum: int) -> None:
    slot = Slot(state, number, offset, size, checksum)
    packed = pack_slot(slot)
    assert len(packed) == SLOT_BYTES
    assert unpack_slot(packed) == slot


@given(U64, U64, NAME, st.text(max_size=100))
def test_headers_read_back(number: int, size: int, key: str, parent: str) -> None:
    header = Header(number, size, key, parent)
    packed = pack_header(header)
    assert len(packed) == header_bytes(key, parent)
    assert len(packed) % 64 == 0
    assert unpack_header(packed) == header


@given(st.binary(min_size=SLOT_BYTES, max_size=SLOT_BYTES))
def test_noise_is_neither_slot_nor_header(noise: bytes) -> None:
    assert unpack_slot(noise) is None
    assert unpack_header(noise) is None


@given(st.integers(0, 32 - 4 + 90 - 1))
def test_a_header_that_is_cut_off_is_none(length: int) -> None:
    assert unpack_header(pack_header(Header(1, 2, "k" * 90, ""))[:length]) is None


@pytest.mark.parametrize("key", ["", "k" * 1025, "é" * 513])
def test_keys_have_a_length(key: str) -> None:
    with pytest.raises(InvalidRequest, match="1 to 1024 bytes"):
        header_bytes(key, "")
