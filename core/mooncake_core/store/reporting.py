"""What a node's directory says, in parts small enough that nobody waits long for the node or the master meanwhile. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from mooncake_core.store.layout import SLOT_BYTES, SlotState, align, read_names, used_slots
from mooncake_core.wire.messages.pool import StoredObject

OBJECTS_PER_REPORT: Final = 2048
SLOTS_PER_PAGE: Final = 64
PAGES_PER_REPORT: Final = 1024
"""Pages without an object cost little, but not nothing."""
_FREE_PAGE: Final = bytes(SLOTS_PER_PAGE * SLOT_BYTES)


@dataclass(slots=True)
class Part:
    """A part of a directory."""

    objects: list[StoredObject] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    """Slots whose object was never whole, or is no object: they are to be erased."""
    next_slot: int = 0


class Directory:
    """The slots of a segment, and the headers that they name."""

    def __init__(self, view: memoryview, *, num_slots: int, data_offset: int) -> None:
        """`view`: the segment."""
        self._view = view
        self._num_slots = num_slots
        self._data_offset = data_offset

    def part(self, first: int) -> Part:
        """The next part, from this slot on."""
        part = Part()
        last = min(self._num_slots, first + PAGES_PER_REPORT * SLOTS_PER_PAGE)
        for page in range(first, last, SLOTS_PER_PAGE):
            part.next_slot = min(page + SLOTS_PER_PAGE, last)
            for number, stored in self._page(page, part.next_slot):
                if stored is None:
                    part.broken.append(number)
                else:
                    part.objects.append(stored)
            if len(part.objects) >= OBJECTS_PER_REPORT:
                break
        return part

    def object_at(self, slot: int) -> StoredObject | None:
        """The whole object of a slot, if it has one."""
        return next((stored for _, stored in self._page(slot, slot + 1)), None)

    def _page(self, first: int, last: int) -> Iterator[tuple[int, StoredObject | None]]:
        """The slots of a page that were written, with their objects where they are whole."""
        page = bytes(self._view[first * SLOT_BYTES : last * SLOT_BYTES])
        if page == _FREE_PAGE:
            return
        for index, state, allocation_id, offset, size_bytes, checksum in used_slots(page):
            names = self._names(state, allocation_id, offset, size_bytes)
            if names is None:
                yield first + index, None
                continue
            yield (
                first + index,
                StoredObject(
                    key=names[0],
                    parent=names[1],
                    allocation_id=allocation_id,
                    size_bytes=size_bytes,
                    checksum=checksum,
                    slot=first + index,
                    offset=offset,
                    removed=state == SlotState.REMOVED,
                ),
            )

    def _names(self, state: int, allocation_id: int, offset: int, size_bytes: int) -> tuple[str, str] | None:
        """Key and parent of a slot's object, if header and slot agree, and it lies within the segment."""
        if state == SlotState.RESERVED or offset < self._data_offset:
            return None
        found = read_names(self._view, offset, allocation_id, size_bytes)
        if found is None:
            return None
        key, parent, header_length = found
        return (key, parent) if offset + header_length + align(size_bytes) <= len(self._view) else None
