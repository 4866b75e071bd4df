"""A directory is read in parts, and only what is whole is named."""

from __future__ import annotations

from mooncake_core.store.layout import (
    SLOT_BYTES,
    Header,
    Slot,
    SlotState,
    align,
    header_bytes,
    pack_header,
    pack_slot,
)
from mooncake_core.store.reporting import OBJECTS_PER_REPORT, PAGES_PER_REPORT, SLOTS_PER_PAGE, Directory, Part

NUM_SLOTS = 2 * PAGES_PER_REPORT * SLOTS_PER_PAGE + 10
EXTENT = 192


class Segment:
    """A segment of many slots, and objects at 64 byte each."""

    def __init__(self, num_slots: int = NUM_SLOTS) -> None:
        self.num_slots = num_slots
        self.data_offset = align(num_slots * SLOT_BYTES)
        self.memory = memoryview(bytearray(self.data_offset + 4 * OBJECTS_PER_REPORT * EXTENT))
        self.places = iter(range(self.data_offset, len(self.memory), EXTENT))

    def put(
        self, number: int, *, state: SlotState = SlotState.COMMITTED, key: str = "", offset: int | None = None
    ) -> None:
        where = next(self.places) if offset is None else offset
        header = Header(number, 64, key or f"k{number}", "p")
        self.slot(number, Slot(state, number, where, 64, 7))
        if where + header_bytes(header.key, "p") <= len(self.memory):
            self.memory[where : where + header_bytes(header.key, "p")] = pack_header(header)

    def slot(self, number: int, slot: Slot) -> None:
        self.memory[number * SLOT_BYTES : (number + 1) * SLOT_BYTES] = pack_slot(slot)

    def parts(self) -> list[Part]:
        directory = Directory(self.memory, num_slots=self.num_slots, data_offset=self.data_offset)
        found = [directory.part(0)]
        while found[-1].next_slot < self.num_slots:
            found.append(directory.part(found[-1].next_slot))
        return found


def test_every_object_is_named_once_with_all_that_its_slot_says() -> None:
    segment = Segment()
    numbers = [0, 1, SLOTS_PER_PAGE - 1, SLOTS_PER_PAGE, 5000, NUM_SLOTS - 1]
    for number in numbers:
        segment.put(number)
    found = [stored for part in segment.parts() for stored in part.objects]
    assert [stored.slot for stored in found] == numbers
    assert [(stored.key, stored.parent, stored.allocation_id) for stored in found] == [
        (f"k{number}", "p", number) for number in numbers
    ]
    assert {(stored.size_bytes, stored.checksum, stored.removed) for stored in found} == {(64, 7, False)}
    assert [stored.offset for stored in found] == [
        segment.data_offset + EXTENT * index for index in range(len(numbers))
    ]


def test_parts_are_bounded_by_objects_and_by_slots() -> None:
    segment = Segment()
    for number in range(2 * OBJECTS_PER_REPORT + 1):
        segment.put(number)
    parts = segment.parts()
    assert [len(part.objects) for part in parts] == [OBJECTS_PER_REPORT, OBJECTS_PER_REPORT, 1, 0]


def test_a_removed_object_is_named_as_such() -> None:
    segment = Segment()
    segment.put(3, state=SlotState.REMOVED)
    (stored,) = segment.parts()[0].objects
    assert (stored.key, stored.removed) == ("k3", True)


def test_what_is_not_whole_is_said_to_be_broken() -> None:
    segment = Segment()
    segment.put(0, state=SlotState.RESERVED)
    segment.put(1, offset=100 * SLOT_BYTES)  # in the directory itself
    segment.put(2, offset=len(segment.memory) - 64)  # its data would lie behind the end
    segment.put(3, offset=len(segment.memory) - 8)
    segment.put(4, offset=1 << 60)
    segment.put(5)
    segment.slot(5, Slot(SlotState.COMMITTED, 99, segment.data_offset, 64, 7))  # another object's header
    segment.put(6)
    part = segment.parts()[0]
    assert part.broken == [0, 1, 2, 3, 4, 5]
    assert [stored.key for stored in part.objects] == ["k6"]


def test_names_that_are_no_text_or_too_long_are_broken() -> None:
    segment = Segment()
    segment.put(0, key="\u00e9\u00e9")
    segment.memory[segment.data_offset + 28] = 0xFF
    segment.put(1)
    segment.memory[segment.data_offset + EXTENT + 24 : segment.data_offset + EXTENT + 26] = b"\xff\xff"
    assert segment.parts()[0].broken == [0, 1]
