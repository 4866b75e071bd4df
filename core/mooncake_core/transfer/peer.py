"""Another endpoint, as it was when it was opened: which of its memory lies where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from mooncake_core.errors import NotRegistered, OutOfRange, StaleSegment
from mooncake_core.transfer.addresses import AddressMap, Span
from mooncake_core.transfer.contract import Range
from mooncake_core.transfer.slices import total_bytes
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.segments import SegmentOpened

TOGETHER_BYTES: Final = 4 << 20
"""So much one transfer carries at most: several connections can share a large batch."""

Remote = int | Sequence[Span]
"""An address of the peer, for as many bytes as the local pieces have; or a scatter list."""


class Ends:
    """Of one transfer: pieces here, ranges of a segment there."""

    __slots__ = ("far", "near", "num_bytes", "segment")

    def __init__(self, segment: SegmentDescriptor) -> None:
        self.segment = segment
        self.near: list[memoryview] = []
        self.far: list[Range] = []
        self.num_bytes = 0


class Peer:
    """Its addresses are right for one start of its process: after another one, transfers fail with StaleSegment until it is
    opened anew. Any thread."""

    def __init__(self, name: str, opened: SegmentOpened, ask: Callable[[Peer], SegmentOpened]) -> None:
        self.name = name
        self.incarnation = opened.incarnation
        self._ask = ask
        self._opened = opened
        self._memories = _map(opened)
        self._is_doubtful = False

    def doubt(self) -> None:
        """A transfer failed: before the next one it is asked whether it is still the same."""
        self._is_doubtful = True

    @property
    def first_address(self) -> int | None:
        """Of the memory that it registered first and still has; None where it has none."""
        return self._opened.memories[0].address if self._opened.memories else None

    def refresh(self) -> bool:
        """Asks again what is registered; whether that has changed.

        Raises:
            StaleSegment: it is another process by now.
            WireError: it cannot be asked.
        """
        opened = self._ask(self)
        self._is_doubtful = False
        if opened.incarnation != self.incarnation:
            self._is_doubtful = True  # for ever
            raise StaleSegment(f"{self.name} was started anew: open it again, and learn its addresses anew")
        has_changed = opened != self._opened
        if has_changed:
            self._memories = _map(opened)
            self._opened = opened
        return has_changed

    def room(self, address: int) -> int:
        """Bytes from there to the end of the region it lies in; 0 where none is known."""
        found = self._memories.find(address)
        return found[0] + found[1] - address if found else 0

    def find(self, address: int, length: int) -> tuple[SegmentDescriptor, Range]:
        """Where a range of the peer's addresses lies; asks the peer where that is not known.

        Raises:
            NotRegistered: it does not lie in one region that the peer registered.
            StaleSegment, WireError: as refresh.
        """
        found = self._find(address, length)
        if found is None and self.refresh():
            found = self._find(address, length)
        if found is None:
            raise NotRegistered(f"{self.name} has registered no memory that holds {length} bytes at {address:#x}")
        return found

    def ranges(self, pieces: Sequence[memoryview], remote: Remote) -> tuple[SegmentDescriptor, list[Range]]:
        """Where a transfer's remote end lies.

        Raises:
            OutOfRange: the scatter list is empty, or lies in several regions.
            NotRegistered, StaleSegment, WireError: as find.
        """
        self._check()
        if isinstance(remote, int):
            segment, part = self.find(remote, total_bytes(pieces))
            return segment, [part]
        found = [self.find(address, length) for address, length in remote]
        if not found or any(segment is not found[0][0] for segment, _ in found):
            raise OutOfRange(f"expected ranges of one region of {self.name}: make a request for each region")
        return found[0][0], [part for _, part in found]

    def ends(self, pieces: Sequence[memoryview], addresses: Sequence[int]) -> list[Ends]:
        """Pieces and where each goes or comes from, put together into transfers as long as is good for the engine. What goes
        on where the last one ended becomes one range.

        Raises as `find`.
        """
        self._check()
        if len(pieces) == 1:  # a single one is to be quick
            return self._single(pieces[0], *addresses)
        ended: list[Ends] = []
        current: dict[int, Ends] = {}
        start = end = 0
        segment: SegmentDescriptor | None = None
        for piece, address in zip(pieces, addresses, strict=True):
            length = piece.nbytes
            if not length:
                continue
            if segment is None or not start <= address or address + length > end:
                segment, part = self.find(address, length)
                start, end = address - part.offset, address - part.offset + segment.length_bytes
            ends = current.get(id(segment))
            if ends is None or ends.num_bytes + length > TOGETHER_BYTES:
                ends = current[id(segment)] = Ends(segment)
                ended.append(ends)
            far = ends.far
            offset = address - start
            if far and far[-1].offset + far[-1].length == offset:
                far[-1] = Range(far[-1].offset, far[-1].length + length)
            else:
                far.append(Range(offset, length))
            ends.near.append(piece)
            ends.num_bytes += length
        return ended

    def _single(self, piece: memoryview, address: int) -> list[Ends]:
        if not piece.nbytes:
            return []
        segment, part = self.find(address, piece.nbytes)
        ends = Ends(segment)
        ends.near.append(piece)
        ends.far.append(part)
        return [ends]

    def _check(self) -> None:
        if self._is_doubtful:
            self.refresh()

    def _find(self, address: int, length: int) -> tuple[SegmentDescriptor, Range] | None:
        found = self._memories.find(address)
        if found is None or address + length > found[0] + found[1]:
            return None
        return found[2], Range(address - found[0], length)


def by_segment(ended: Sequence[Ends]) -> Iterable[tuple[SegmentDescriptor, list[tuple[list[memoryview], list[Range]]]]]:
    """Transfers as the engine takes them: all of one segment at once."""
    if len(ended) == 1:  # mostly
        return [(ended[0].segment, [(ended[0].near, ended[0].far)])]
    found: dict[int, tuple[SegmentDescriptor, list[tuple[list[memoryview], list[Range]]]]] = {}
    for ends in ended:
        found.setdefault(id(ends.segment), (ends.segment, []))[1].append((ends.near, ends.far))
    return found.values()


def _map(opened: SegmentOpened) -> AddressMap[SegmentDescriptor]:
    memories: AddressMap[SegmentDescriptor] = AddressMap()
    for memory in opened.memories:
        memories.add(Span(memory.address, memory.segment.length_bytes), memory.segment)
    return memories
