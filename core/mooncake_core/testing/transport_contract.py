"""The contract of a transport as tests. A plugin's test file subclasses TransportContract:

class TestMine(TransportContract):
    transport = MyTransport
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
from msgspec import structs

from mooncake_core.errors import DeadlineExceeded, OutOfRange, PathFailed, StaleSegment, TransferError
from mooncake_core.transfer.contract import Completion, Kind, Operation, Range, Transport, TransportSettings
from mooncake_core.transfer.shared_memory import SharedMemory

PATIENCE_S = 20.0
BIG_BYTES = 64 << 20
"""Takes so long that it can be stopped in the middle."""
OPERATION_BYTES = 16 << 20
PART_BYTES = 64 << 10
RUN_BYTES = 100
"""So many equal bytes are no accident."""
_PARTS = range(0, OPERATION_BYTES, PART_BYTES)
_LAST_OF_PARTS = slice(PART_BYTES - 1, None, PART_BYTES)


class Ends:
    """An initiator and a target of one transport; the same one where it only reaches its own process."""

    def __init__(self, transport: type[Transport], *, moves: bool = False) -> None:
        """With `moves`, `complete` lets the calling thread do the work where the transport can."""
        self._transport = transport
        self._moves = moves
        self.initiator = self.make("initiator", 1)
        self.target = self.initiator if transport.capabilities.same_process_only else self.make("target", 2)
        self._shared: dict[int, SharedMemory] = {}
        self.memory, self.handle = self.register(1 << 20)
        self.memory[:] = os.urandom(1 << 20)
        self.numbers = itertools.count(1)

    def make(self, owner: str, incarnation: int, secret: bytes | None = None) -> Transport:
        return self._transport(self.settings(owner, incarnation, secret))

    def settings(self, owner: str, incarnation: int, secret: bytes | None) -> TransportSettings:
        """Of one end. To be overridden by ends that need further ones."""
        return TransportSettings(
            owner=owner, host_id="h", incarnation=incarnation, secret=secret, connections_per_peer=2
        )

    def register(self, num_bytes: int) -> tuple[memoryview, int]:
        """Memory of the target's process, and its handle there."""
        shared = SharedMemory("contract", num_bytes)
        handle = self.target.register(shared.view, shared.descriptor)
        self._shared[handle] = shared
        return shared.view, handle

    def memory_of(self, handle: int) -> memoryview:
        """What was registered under a handle."""
        return self._shared[handle].view

    def export(self, *, writable: bool, ranges: list[Range] | None = None) -> bytes:
        """A path to the target's memory."""
        path = self.target.export(self.handle, writable=writable, ranges=ranges)
        assert path is not None
        return path

    def operation(
        self, kind: Kind, path: bytes, pieces: list[memoryview], offset: int, timeout_s: float = PATIENCE_S
    ) -> Operation:
        return Operation(
            operation_id=next(self.numbers),
            kind=kind,
            pieces=tuple(pieces),
            path=path,
            ranges=(Range(offset, sum(piece.nbytes for piece in pieces)),),
            deadline_s=time.monotonic() + timeout_s,
        )

    def complete(self, operations: list[Operation]) -> dict[int, TransferError | TimeoutError | None]:
        """Carries operations out; one completion each."""
        moved = self.initiator.move(operations) if self._moves else [None] * len(operations)
        posted = [one for one, completion in zip(operations, moved, strict=True) if completion is None]
        self.initiator.post(posted)
        done = {completion.operation_id: completion.error for completion in moved if completion is not None}
        return done | self.collect(len(posted))

    def collect(self, count: int) -> dict[int, TransferError | TimeoutError | None]:
        done: list[Completion] = []
        deadline = time.monotonic() + PATIENCE_S
        while len(done) < count:
            readable, _, _ = select.select([self.initiator.fileno()], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"{len(done)} of {count} operations completed within {PATIENCE_S:g}s"
            done.extend(self.initiator.poll())
        assert len({completion.operation_id for completion in done}) == len(done), "a second completion"
        return {completion.operation_id: completion.error for completion in done}

    def transfer(self, kind: Kind, path: bytes, pieces: list[memoryview], offset: int) -> Exception | None:
        """One operation and how it ended."""
        operation = self.operation(kind, path, pieces, offset)
        return self.complete([operation])[operation.operation_id]

    def close(self) -> None:
        self.initiator.close()
        self.target.close()
        for shared in self._shared.values():
            shared.close()


class TransportContract:
    """Subclass, set `transport`, inherit the tests."""

    transport: ClassVar[type[Transport]]

    @pytest.fixture(params=[False, True], ids=["post", "move"])
    def ends(self, request: pytest.FixtureRequest) -> Iterator[Ends]:
        ends = Ends(self.transport, moves=request.param)
        yield ends
        ends.close()

    @pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, 1), (7, 4096), (12345, 100_001), (0, 1 << 20)])
    def test_reads_what_is_there(self, ends: Ends, offset: int, length: int) -> None:
        path = ends.export(writable=False)
        here = bytearray(length)
        assert ends.transfer(Kind.READ, path, [memoryview(here)], offset) is None
        assert here == ends.memory[offset : offset + length]

    @pytest.mark.parametrize(("offset", "length"), [(0, 0), (3, 1), (7, 4096), (12345, 100_001), (0, 1 << 20)])
    def test_writes_there_and_nowhere_else(self, ends: Ends, offset: int, length: int) -> None:
        path = ends.export(writable=True)
        expected = bytearray(bytes(ends.memory))
        here = os.urandom(length)
        expected[offset : offset + length] = here
        assert ends.transfer(Kind.WRITE, path, [memoryview(here)], offset) is None
        assert ends.memory == expected

    def test_scatters_and_gathers_pieces_in_order(self, ends: Ends) -> None:
        path = ends.export(writable=True)
        sizes = [1, 0, 4095, 17, 65536] + [3] * 700
        source = [memoryview(os.urandom(size)) for size in sizes]
        assert ends.transfer(Kind.WRITE, path, source, 100) is None
        sinks = [bytearray(size) for size in sizes]
        assert ends.transfer(Kind.READ, path, [memoryview(sink) for sink in sinks], 100) is None
        assert [bytes(sink) for sink in sinks] == [bytes(piece) for piece in source]

    def test_remote_ranges_are_scattered_and_gathered_too(self, ends: Ends) -> None:
        path = ends.export(writable=True)
        expected = bytearray(bytes(ends.memory))
        ranges = tuple(Range(1000 * n + n, 200 + n) for n in range(600))
        source = os.urandom(sum(part.length for part in ranges))
        rest = memoryview(source)
        for part in ranges:
            expected[part.offset : part.offset + part.length], rest = rest[: part.length], rest[part.length :]
        pieces = [memoryview(source)[:777], memoryview(source)[777:]]
        write = structs.replace(ends.operation(Kind.WRITE, path, pieces, 0), ranges=ranges)
        assert set(ends.complete([write]).values()) == {None}
        assert ends.memory == expected
        here = bytearray(len(source))
        read = structs.replace(ends.operation(Kind.READ, path, [memoryview(here)], 0), ranges=ranges)
        assert set(ends.complete([read]).values()) == {None}
        assert here == source

    def test_one_range_outside_refuses_the_whole_operation(self, ends: Ends) -> None:
        path = ends.export(writable=True, ranges=[Range(0, 100), Range(200, 100)])
        before = bytes(ends.memory)
        operation = structs.replace(
            ends.operation(Kind.WRITE, path, [memoryview(b"x" * 150)], 0), ranges=(Range(0, 100), Range(190, 50))
        )
        assert isinstance(ends.complete([operation])[operation.operation_id], OutOfRange)
        assert ends.memory == before

    def test_moves_more_than_any_buffer_holds(self, ends: Ends) -> None:
        big, handle = ends.register(32 << 20)
        path = ends.target.export(handle, writable=True)
        assert path is not None
        source = random.Random(1).randbytes(len(big))
        assert ends.transfer(Kind.WRITE, path, [memoryview(source)], 0) is None
        assert big == source

    def test_many_operations_of_both_kinds_at_once(self, ends: Ends) -> None:
        path = ends.export(writable=True)
        before = bytes(ends.memory)
        sinks = [bytearray(1024) for _ in range(200)]
        reads = [ends.operation(Kind.READ, path, [memoryview(sink)], n * 1024) for n, sink in enumerate(sinks)]
        sources = [os.urandom(1024) for _ in range(200)]
        writes = [
            ends.operation(Kind.WRITE, path, [memoryview(source)], (512 << 10) + n * 1024)
            for n, source in enumerate(sources)
        ]
        mixed = [operation for pair in zip(reads, writes, strict=True) for operation in pair]
        assert set(ends.complete(mixed).values()) == {None}
        assert b"".join(sinks) == before[: 200 * 1024]
        assert ends.memory[512 << 10 : (512 << 10) + 200 * 1024] == b"".join(sources)

    def test_threads_may_post_at_once(self, ends: Ends) -> None:
        path = ends.export(writable=False)
        sinks = [bytearray(4096) for _ in range(80)]
        groups = [
            [ends.operation(Kind.READ, path, [memoryview(sink)], n * 4096) for n, sink in enumerate(sinks)][start::8]
            for start in range(8)
        ]
        threads = [threading.Thread(target=ends.initiator.post, args=(group,)) for group in groups]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(ends.collect(80).values()) == {None}
        assert b"".join(sinks) == ends.memory[: 80 * 4096]

    def test_a_read_only_export_refuses_writes(self, ends: Ends) -> None:
        path = ends.export(writable=False)
        before = bytes(ends.memory)
        assert isinstance(ends.transfer(Kind.WRITE, path, [memoryview(b"x" * 100_000)], 0), OutOfRange)
        assert ends.memory == before
        here = bytearray(10)
        assert ends.transfer(Kind.READ, path, [memoryview(here)], 0) is None  # the connection lives on

    @pytest.mark.parametrize(("offset", "length"), [(0, 101), (99, 2), (300, 1), (199, 2), (1 << 40, 1), (150, 100)])
    def test_what_lies_outside_of_the_ranges_is_refused(self, ends: Ends, offset: int, length: int) -> None:
        path = ends.export(writable=True, ranges=[Range(200, 100), Range(0, 100)])
        before = bytes(ends.memory)
        assert isinstance(ends.transfer(Kind.WRITE, path, [memoryview(b"x" * length)], offset), OutOfRange)
        assert ends.memory == before

    def test_what_lies_inside_of_a_range_is_served(self, ends: Ends) -> None:
        path = ends.export(writable=True, ranges=[Range(200, 100), Range(0, 100)])
        assert ends.transfer(Kind.WRITE, path, [memoryview(b"y" * 100)], 200) is None
        assert ends.memory[200:300] == b"y" * 100

    def test_an_impossible_range_cannot_be_exported(self, ends: Ends) -> None:
        with pytest.raises(OutOfRange):
            ends.export(writable=True, ranges=[Range(1 << 20, 1)])

    def test_a_withdrawn_export_is_stale_and_others_live_on(self, ends: Ends) -> None:
        gone = ends.export(writable=True)
        kept = ends.export(writable=True)
        ends.target.withdraw(gone)
        ends.target.withdraw(gone)
        assert isinstance(ends.transfer(Kind.WRITE, gone, [memoryview(b"x")], 0), StaleSegment)
        assert ends.transfer(Kind.WRITE, kept, [memoryview(b"x")], 0) is None

    def test_unregistering_withdraws(self, ends: Ends) -> None:
        path = ends.export(writable=True)
        ends.target.unregister(ends.handle)
        assert isinstance(ends.transfer(Kind.READ, path, [memoryview(bytearray(1))], 0), StaleSegment)

    def test_after_withdraw_returns_memory_does_not_change(self, ends: Ends) -> None:
        big, handle = ends.register(BIG_BYTES)
        source = memoryview(b"x" * BIG_BYTES)
        for _ in range(3):
            big[:] = bytes(BIG_BYTES)
            errors, sample = self._withdraw_under_way(ends, Kind.WRITE, handle, source, lambda: any(big[::PART_BYTES]))
            assert bytes(big[_LAST_OF_PARTS]) == sample
            assert any(sample)
            assert all(error is None or isinstance(error, (StaleSegment, PathFailed)) for error in errors)

    def test_after_withdraw_returns_nobody_reads(self, ends: Ends) -> None:
        big, handle = ends.register(BIG_BYTES)
        sink = memoryview(bytearray(BIG_BYTES))
        for _ in range(3):
            big[:] = b"x" * BIG_BYTES
            sink[:] = bytes(BIG_BYTES)
            errors, _ = self._withdraw_under_way(ends, Kind.READ, handle, sink, lambda: any(sink[::PART_BYTES]))
            # Of a read that failed the pieces may hold anything, a header with a y in it too; but no memory full of them.
            assert b"y" * RUN_BYTES not in bytes(sink)
            assert all(error is None or isinstance(error, (StaleSegment, PathFailed)) for error in errors)

    def _withdraw_under_way(
        self, ends: Ends, kind: Kind, handle: int, here: memoryview, moving: Callable[[], bool]
    ) -> tuple[list[TransferError | TimeoutError | None], bytes]:
        """Large operations are under way, bytes have moved, and the export is withdrawn. How they ended, and a sample of
        the memory when that returned; after which it is filled with y for a read."""
        path = ends.target.export(handle, writable=True)
        assert path is not None
        assert ends.transfer(kind, path, [memoryview(bytearray(1))], 0) is None, "connected, and mapped"
        operations = [
            ends.operation(kind, path, [here[start + n : start + n + PART_BYTES] for n in _PARTS], start)
            for start in range(0, BIG_BYTES, OPERATION_BYTES)
        ]
        errors: list[TransferError | TimeoutError | None] = []
        mover = threading.Thread(target=lambda: errors.extend(ends.complete(operations).values()))
        mover.start()
        deadline = time.monotonic() + PATIENCE_S
        while not moving():
            assert time.monotonic() < deadline
        ends.target.withdraw(path)
        memory = ends.memory_of(handle)
        sample = bytes(memory[_LAST_OF_PARTS])
        if kind is Kind.READ:
            memory[:] = b"y" * BIG_BYTES
        mover.join()
        assert len(errors) == len(operations)
        return errors, sample

    def test_poll_never_blocks_and_is_empty_when_idle(self, ends: Ends) -> None:
        assert ends.initiator.poll() == []
        assert select.select([ends.initiator.fileno()], [], [], 0) == ([], [], [])

    def test_a_target_that_is_gone_is_a_failed_path(self, ends: Ends) -> None:
        if ends.target is ends.initiator:
            pytest.skip("goes with its initiator")
        path = ends.export(writable=True)
        ends.target.close()
        error = ends.transfer(Kind.WRITE, path, [memoryview(b"x")], 0)
        assert isinstance(error, PathFailed)
        assert error.detail["errno"] > 0

    def test_closing_completes_what_is_under_way(self, ends: Ends) -> None:
        path = ends.export(writable=True)
        source = os.urandom(1 << 16)
        operations = [ends.operation(Kind.WRITE, path, [memoryview(source)], n << 16) for n in range(16)]
        ends.initiator.post(operations)
        ends.initiator.close()
        done = ends.initiator.poll()
        assert len(done) == len(operations)
        assert all(completion.error is None or isinstance(completion.error, PathFailed) for completion in done)

    def test_what_is_posted_after_closing_is_a_failed_path(self, ends: Ends) -> None:
        path = ends.export(writable=True)
        ends.initiator.close()
        ends.initiator.post([ends.operation(Kind.WRITE, path, [memoryview(b"x")], 0)])
        (completion,) = ends.initiator.poll()
        assert isinstance(completion.error, PathFailed)

    def test_an_operation_posted_too_late_is_a_missed_deadline(self, ends: Ends) -> None:
        path = ends.export(writable=True)
        operation = ends.operation(Kind.WRITE, path, [memoryview(b"x")], 0, timeout_s=-1)
        assert isinstance(ends.complete([operation])[operation.operation_id], DeadlineExceeded)

    def test_closing_frees_descriptors_and_threads(self) -> None:
        before = _resources()
        for _ in range(3):
            ends = Ends(self.transport)
            path = ends.export(writable=False)
            assert ends.transfer(Kind.READ, path, [memoryview(bytearray(10))], 0) is None
            ends.close()
            ends.close()
        descriptors, threads = ([*(after - earlier)] for earlier, after in zip(before, _resources(), strict=True))
        assert not descriptors + threads, f"left behind: {', '.join(descriptors + threads)}"


def _resources() -> tuple[Counter[str], Counter[str]]:
    """Open descriptors by kind, and threads by name. What a test before this one has left may still be on its way out."""
    folder = "/proc/self/fd"
    kinds: Counter[str] = Counter()
    for number in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            kinds[os.readlink(f"{folder}/{number}").partition("[")[0]] += 1
    return kinds, Counter(thread.name.rstrip("0123456789") for thread in threading.enumerate())
