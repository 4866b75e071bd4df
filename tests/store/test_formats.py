"""What earlier versions wrote is read. Bytes here are never changed: a new version adds its own.

See docs/decisions/0015-formats-carry-versions.md.
"""

from __future__ import annotations

import pytest

from mooncake_core.store.layout import (
    SLOT_BYTES,
    Header,
    Slot,
    SlotState,
    pack_header,
    pack_slot,
    unpack_header,
    unpack_slot,
)
from mooncake_core.wire.messages import Message, decode
from mooncake_core.wire.messages.membership import Join, SegmentOffer
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.pool import BlockReport, ClearSlots, SlotClearing, StoredObject

SLOT_1 = bytes.fromhex(
    "4d4e43534c4f543102000000000000005544332211000000001000000000000064000000000000001032547698badcfe"
    "00000000000000000000000000000000"
)
HEADER_1 = bytes.fromhex(
    "4d4e434f424a5f3155443322110000006400000000000000030006006b6579706172656e740000000000000000000000"
    "00000000000000000000000000000000"
)
SEGMENT = SegmentDescriptor(owner="node", host_id="host", incarnation=7, length_bytes=8192, paths={"tcp": b"\x01"})
MESSAGES: dict[str, tuple[str, Message]] = {
    "a node that knows no draining joins": (
        "8aa474797065a44a6f696ea46e616d65a46e6f6465a4726f6c65a573746f7265a7686f73745f6964a4686f7374ab696e6361726e6174"
        "696f6e07af636f6e74726f6c5f61646472657373a97463703a2f2f683a31a370696409a86c6f63616c5f746fa0a77365676d656e7486"
        "ae63617061636974795f6279746573cd1000ab646174615f6f6666736574cd1000a96e756d5f736c6f747340aa736c6f745f62797465"
        "7340a47265616485a56f776e6572a46e6f6465a7686f73745f6964a4686f7374ab696e6361726e6174696f6e07ac6c656e6774685f62"
        "79746573cd2000a5706174687381a3746370c40101a5777269746585a56f776e6572a46e6f6465a7686f73745f6964a4686f7374ab69"
        "6e6361726e6174696f6e07ac6c656e6774685f6279746573cd2000a5706174687381a3746370c40101a8696e7374616e6365c0",
        Join(
            name="node",
            role="store",
            host_id="host",
            incarnation=7,
            control_address="tcp://h:1",
            pid=9,
            segment=SegmentOffer(
                capacity_bytes=4096, data_offset=4096, num_slots=64, slot_bytes=64, read=SEGMENT, write=SEGMENT
            ),
        ),
    ),
    "a master that numbers no orders has slots cleared": (
        "84a474797065aa436c656172536c6f7473a47465726d03ab696e6361726e6174696f6e07a5736c6f74739183a4736c6f7401ad616c6c"
        "6f636174696f6e5f696402a96f6e6c795f6d61726bc2",
        ClearSlots(term=3, incarnation=7, slots=[SlotClearing(slot=1, allocation_id=2)]),
    ),
    "a node reports": (
        "84a474797065ab426c6f636b5265706f7274ab696e6361726e6174696f6e07a76f626a656374739188a36b6579a36b6579a6706172"
        "656e74a6706172656e74ad616c6c6f636174696f6e5f696405aa73697a655f627974657364a8636865636b73756d06a4736c6f7401a6"
        "6f6666736574cd1000a772656d6f766564c2ab6e6578745f637572736f72ff",
        BlockReport(
            incarnation=7,
            objects=[
                StoredObject(
                    key="key", parent="parent", allocation_id=5, size_bytes=100, checksum=6, slot=1, offset=4096
                )
            ],
            next_cursor=-1,
        ),
    ),
}


def test_slot_layout_1() -> None:
    slot = Slot(SlotState.COMMITTED, 0x1122334455, 4096, 100, 0xFEDCBA9876543210)
    assert unpack_slot(SLOT_1) == slot
    assert pack_slot(slot) == SLOT_1


def test_header_layout_1() -> None:
    header = Header(0x1122334455, 100, "key", "parent")
    assert unpack_header(HEADER_1) == header
    assert pack_header(header) == HEADER_1


@pytest.mark.parametrize("version", [b"0", b"2", b"9"])
def test_a_layout_that_is_not_known_is_no_object_and_never_bytes(version: bytes) -> None:
    assert unpack_slot(SLOT_1[:7] + version + SLOT_1[8:]) is None
    assert unpack_header(HEADER_1[:7] + version + HEADER_1[8:]) is None
    assert len(SLOT_1) == SLOT_BYTES


@pytest.mark.parametrize(("recorded", "message"), MESSAGES.values(), ids=list(MESSAGES))
def test_messages_of_protocol_version_3(recorded: str, message: Message) -> None:
    assert decode(bytes.fromhex(recorded)) == message
