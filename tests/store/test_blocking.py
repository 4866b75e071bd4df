"""The store for threads: the calling thread asks the master and moves the bytes."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from mooncake_core.errors import DeadlineExceeded, NoSpace, ObjectNotFound, OutOfRange, PathFailed, PeerUnreachable
from mooncake_core.roles.master.pool import PoolDriver
from mooncake_core.store.blocking import BlockingStore
from mooncake_core.store.client import PutObject
from mooncake_core.store.width import FIRST_MOVES, Way, Widths
from mooncake_core.transfer.batch import Transfer
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.messages.pool import Exists, NewObject, PutStart
from tests.store.blocking_world import blocking_world, get, put
from tests.store.held_transport import Gate, held_transport

MISSING = ObjectNotFound.code


@contextmanager
def interrupted_by(handler: Any) -> Iterator[None]:
    """What the signal handler of a program does meanwhile."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt_a_put(store: BlockingStore, gate: Gate, *keys: str, **options: Any) -> None:
    """While its bytes are on their way to node a, whose gate opens only then."""
    gate.hold(Kind.WRITE, "a")

    def interrupt(*_: object) -> None:
        gate.open("a")
        raise KeyboardInterrupt

    with interrupted_by(interrupt):
        threading.Thread(target=_kill_when, args=(gate.held,)).start()
        with pytest.raises(KeyboardInterrupt):
            put(store, *keys, **options)


@pytest.mark.parametrize("transports", [["tcp"], ["shm"], ["shm", "tcp"], [held_transport()[1]]])
def test_what_was_put_comes_back(transports: list[Any]) -> None:
    with blocking_world("a", "b", transports=transports, capacity=8 << 20) as w:
        store = w.store()
        keys = [f"k{number}" for number in range(20)]
        values = put(store, *keys, replicas=2)
        assert get(store, *keys, "missing") == [*values, MISSING]
        assert store.exists(["k0", "missing", "k19"]) == [True, False, True]
        assert w.check() == []


def test_both_kinds_of_clients_read_what_the_other_has_put() -> None:
    with blocking_world("a") as w:
        store = w.store()
        mine = put(store, "mine")
        assert w.run(w.inner.get("mine")) == ([True], mine)
        _, theirs = w.run(w.inner.put("theirs"))
        assert get(store, "theirs") == theirs


def test_large_batches_for_several_nodes_move_at_the_same_time() -> None:
    with blocking_world("a", "b", capacity=16 << 20) as w:
        store = w.store()
        values = put(store, "k0", "k1", size=3 << 20, replicas=2)
        assert get(store, "k0", "k1") == values
        assert w.check() == []


@pytest.mark.parametrize(("num_objects", "size"), [(32, 100_000), (1, 3_000_001), (3, 1_200_000)])
@pytest.mark.parametrize("transports", [["tcp"], ["shm"]])
def test_large_batches_for_one_node_come_back_whole_however_they_are_divided(
    transports: list[Any], num_objects: int, size: int
) -> None:
    with blocking_world("a", transports=transports, capacity=64 << 20) as w:
        store, reader = w.store(), w.store()
        for turn in range(2 * FIRST_MOVES + 1):  # each width has its turn
            keys = [f"{turn}-{number}" for number in range(num_objects)]
            values = put(store, *keys, size=size)
            assert get(reader, *keys) == values
            assert get(reader, *keys) == values  # under the lease: each part looks at the slots of its objects
            store.remove(keys, force=True)
        assert w.check() == []


def test_how_a_batch_moved_is_noted_where_the_next_one_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where headers and slots make it longer than the next power of two."""
    asked: set[Way] = set()
    noted: set[Way] = set()
    choose, note = Widths.choose, Widths.note

    def ask(widths: Widths, way: Way) -> int:
        asked.add(way)
        return choose(widths, way)

    def keep(widths: Widths, way: Way, *args: Any) -> None:
        noted.add(way)
        note(widths, way, *args)

    monkeypatch.setattr("mooncake_core.store.calling_thread.HAS_CORES", True)
    monkeypatch.setattr(Widths, "choose", ask)
    monkeypatch.setattr(Widths, "note", keep)
    with blocking_world("a", capacity=16 << 20) as w:
        keys = [f"k{number}" for number in range(32)]
        values = put(w.store(), *keys, size=(2 << 20) // 32 - 1)
        assert get(w.store(), *keys) == values
    assert len(noted) == 2
    assert noted == asked


def test_a_part_that_fails_is_made_up_for_by_the_next_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Widths, "choose", lambda *_: 2)
    with blocking_world("a", "b", capacity=16 << 20) as w:
        store, reader = w.store(), w.store()
        values = put(store, "k0", "k1", size=1_500_000, replicas=2)
        moved = TransferEngine.move
        reads = itertools.count()

        def fail_first(engine: TransferEngine, kind: Kind, *args: Any, **options: Any) -> list[Transfer]:
            (transfer,) = moved(engine, kind, *args, **options)
            if kind is Kind.READ and next(reads) == 0:
                transfer.error = PathFailed("this part has failed")
            return [transfer]

        monkeypatch.setattr(TransferEngine, "move", fail_first)
        assert get(reader, "k0", "k1") == values
        assert next(reads) > 2


def test_an_interrupt_waits_for_the_thread_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Widths, "choose", lambda *_: 2)
    gate, transport = held_transport()
    with blocking_world("a", transports=[transport], capacity=16 << 20) as w:
        store = w.store()
        interrupt_a_put(store, gate, *(f"k{number}" for number in range(4)), size=1 << 20)
        assert w.num_writing() == 0
        assert get(store, "k0") == [MISSING]
        values = put(store, "k0")
        assert get(store, "k0") == values


def test_many_threads_put_and_get_at_once() -> None:
    with blocking_world("a", "b", capacity=32 << 20) as w:
        store = w.store()

        def work(thread: int) -> bool:
            for turn in range(15):
                keys = [f"{thread}-{turn}-{number}" for number in range(3)]
                if get(store, *keys) != [MISSING] * 3:
                    return False
                values = put(store, *keys, size=2000 + thread)
                if get(store, *keys) != values:
                    return False
            return True

        with ThreadPoolExecutor(12) as pool:
            assert all(pool.map(work, range(12)))
        assert w.check() == []
        assert w.num_writing() == 0


def test_an_interrupt_while_bytes_move_gives_the_space_back() -> None:
    gate, transport = held_transport()
    with blocking_world("a", transports=[transport]) as w:
        store = w.store()
        interrupt_a_put(store, gate, "k")
        assert w.num_writing() == 0
        assert get(store, "k") == [MISSING]
        assert get(store, "k") == [MISSING]
        values = put(store, "k")
        assert get(store, "k") == values


def test_an_interrupt_while_space_is_asked_for_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = PoolDriver._ask
    with blocking_world("a") as w:
        seen = asyncio.Event()

        def held(self: PoolDriver, message: Any, call: Any) -> Any:
            if not isinstance(message, PutStart) or seen.is_set():
                return ask(self, message, call)

            async def later() -> Any:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                await seen.wait()
                return ask(self, message, call)

            return later()

        monkeypatch.setattr(PoolDriver, "_ask", held)
        w.restart_master()  # with the handlers as they are now
        store = w.store()

        def interrupt(*_: object) -> None:
            w._loop._loop.call_soon_threadsafe(seen.set)
            raise KeyboardInterrupt

        with interrupted_by(interrupt), pytest.raises(KeyboardInterrupt):
            put(store, "k")
        assert w.num_writing() == 0
        assert get(store, "k") == [MISSING]
        assert w.check() == []
        values = put(store, "k")
        assert get(store, "k") == values


def test_after_an_interrupted_question_the_next_one_gets_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = PoolDriver._ask
    with blocking_world("a") as w:
        entered: list[str] = []

        def held(self: PoolDriver, message: Any, call: Any) -> Any:
            if not isinstance(message, Exists) or entered:
                return ask(self, message, call)
            entered.append("")
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            return ask(self, message, call)

        store = w.store()
        put(store, "k")
        monkeypatch.setattr(PoolDriver, "_ask", held)
        w.restart_master()
        with pytest.raises(KeyboardInterrupt):
            while True:  # the answer may be quicker than the interrupt
                store.exists(["k"])
        assert store.exists(["k", "missing", "k"]) == [True, False, True]


def test_a_restarted_master_is_found_at_its_new_door() -> None:
    with blocking_world("a", "b") as w:
        store = w.store()
        values = put(store, "k0", "k1", replicas=2)
        w.restart_master()
        assert store.exists(["k0", "missing"]) == [True, False]
        assert get(store, "k0", "k1") == values
        more = put(store, "k2")
        assert get(store, "k2") == more


def test_a_master_that_is_gone_is_an_error_and_not_a_wait() -> None:
    with blocking_world("a") as w:
        store = w.store()
        values = put(store, "k")
        w.run(w.inner.stop_master())
        with pytest.raises(PeerUnreachable):
            store.exists(["k"])
        w.run(w.inner.start_master(2, w.inner.address))
        w.run(w.inner.join("a"))
        assert get(store, "k") == values


def test_a_master_that_does_not_answer_is_waited_for_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = PoolDriver._ask

    def silent(self: PoolDriver, message: Any, call: Any) -> Any:
        return asyncio.Event().wait() if isinstance(message, Exists) else ask(self, message, call)

    with blocking_world("a") as w:
        monkeypatch.setattr(PoolDriver, "_ask", silent)
        w.restart_master()
        store = w.store(timeout_s=0.2)
        with pytest.raises(DeadlineExceeded, match="Exists"):
            store.exists(["k"])
        values = put(store, "k")
        assert get(store, "k") == values


def test_the_next_replica_is_read_when_a_node_is_dead() -> None:
    with blocking_world("a", "b") as w:
        store = w.store()
        values = put(store, "k", replicas=2)
        assert get(store, "k") == values
        w.run(w.inner.kill_node("a"))
        assert get(store, "k") == values
        assert get(w.store(), "k") == values
        codes = store.put([PutObject(key="more", pieces=[memoryview(b"x" * 500)])], replicas=2)
        assert codes == [""]
        assert get(store, "more") == [b"x" * 500]


@pytest.mark.parametrize("transport", ["tcp", "shm"])
def test_under_a_lease_the_master_is_not_asked(transport: str) -> None:
    with blocking_world("a", transports=[transport]) as w:
        store = w.store()
        values = put(store, "k0", "k1")
        assert get(store, "k0", "k1") == values
        before = w.hits()
        for _ in range(5):
            assert get(store, "k0", "k1") == values
            assert get(store, "k1") == values[1:]
        assert w.hits() == before
        assert get(store, "k0", "missing") == [values[0], MISSING]
        assert w.hits() == before + 1


def test_a_lease_that_ends_is_taken_anew() -> None:
    with blocking_world("a", read_lease_s=0.0) as w:
        store = w.store(checksum="off")
        put(store, "k")
        before = w.hits()
        for _ in range(3):
            get(store, "k")
        assert w.hits() >= before + 3


@pytest.mark.parametrize("transport", ["tcp", "shm"])
def test_what_was_removed_by_force_is_not_read_under_an_older_lease(transport: str) -> None:
    with blocking_world("a", transports=[transport]) as w:
        reader, other = w.store(), w.store()
        for turn in range(20):
            key = f"k{turn}"
            values = put(other, key)
            assert get(reader, key) == values
            assert other.remove([key]) == ["object_leased"]
            assert other.remove([key], force=True) == [""]
            assert get(reader, key) == [MISSING]
        assert w.check() == []


def test_all_that_was_removed_by_force_is_not_read_under_older_leases() -> None:
    with blocking_world("a", "b") as w:
        reader, other = w.store(), w.store()
        keys = [f"k{number}" for number in range(30)]
        values = put(other, *keys)
        assert get(reader, *keys) == values
        assert other.remove_all(force=True) == 30
        assert get(reader, *keys) == [MISSING] * 30


@pytest.mark.parametrize("transport", ["tcp", "shm"])
def test_an_upsert_is_seen_under_an_older_lease(transport: str) -> None:
    with blocking_world("a", "b", transports=[transport]) as w:
        reader, writer = w.store(), w.store()
        put(writer, "k", replicas=2)
        for _ in range(20):
            values = put(writer, "k", upsert=True, replicas=2)
            assert get(reader, "k") == values
            assert get(reader, "k") == values


def read_exactly(store: BlockingStore, key: str, size: int) -> bytes:
    """An object that must have this size."""
    buffer = bytearray(size)
    assert store.get([key], lambda _, found: [memoryview(buffer)] if found == size else None) == [""]
    return bytes(buffer)


def test_an_object_that_was_put_anew_with_another_size_is_read_under_an_older_lease() -> None:
    with blocking_world("a") as w:
        reader, writer = w.store(), w.store()
        for size in (1000, 3000, 2000, 5000):
            (value,) = put(writer, "k", size=size, upsert=True)
            assert read_exactly(reader, "k", size) == value
            end = bytearray(10)
            assert reader.read_ranges(["k"], [[(size - 10, [memoryview(end)])]]) == [""]
            assert end == value[-10:]
        assert reader.get(["k"], lambda *_: None) == [OutOfRange.code]


def test_a_node_without_room_is_in_nobodys_way() -> None:
    with blocking_world("a") as w:
        w.run(w.inner.add_node("empty", capacity=0))
        values = put(w.store(), "k0", "k1")
        assert get(w.store(), "k0", "k1") == values
        assert w.check() == []


def test_a_node_that_does_not_mark_what_was_removed_does_not_keep_the_answer_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with blocking_world("a", read_lease_s=0.2) as w:
        store = w.store()
        put(store, "k")
        get(store, "k")
        monkeypatch.setattr("mooncake_core.store.pool.MARGIN_S", 0.1)

        async def silent(*_: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(PoolDriver, "_clear", silent)
        assert store.remove(["k"], force=True) == [""]


def test_a_full_pool_is_a_result() -> None:
    with blocking_world("a") as w:
        store = w.store()
        objects = [PutObject(key=f"k{number}", pieces=[memoryview(bytes(10_000))]) for number in range(120)]
        codes = store.put(objects)
        assert codes.count("") == (1 << 20) // (10_048 + 64)
        assert set(codes) == {"", NoSpace.code}
        assert w.check() == []


def test_without_checksums_bytes_are_not_verified_and_with_them_they_are() -> None:
    with blocking_world("a", "b", transports=["shm"]) as w:
        plain, careful = w.store(checksum="off"), w.store(checksum="on")
        put(plain, "plain")
        put(careful, "summed")
        described = plain.describe(["plain", "summed"])
        assert [found is not None and found.checksum != 0 for found in described] == [False, True]
        assert isinstance(get(careful, "plain")[0], bytes)
        node = described[1].replicas[0].node if described[1] else ""
        w.inner.nodes[node][0]._view[described[1].replicas[0].offset + 2000] ^= 1  # type: ignore[union-attr]
        assert get(careful, "summed") == ["transfer"]
        assert isinstance(get(plain, "summed")[0], bytes)


def test_sessions_write_and_read_ranges() -> None:
    with blocking_world("a") as w:
        store = w.store()
        opened = store.begin_put([NewObject(key="k", size_bytes=300)])
        assert opened.write([(0, 100, [memoryview(b"b" * 200)])]) == {0}
        assert opened.write([(0, 0, [memoryview(b"a" * 100)])]) == {0}
        assert opened.end([0], commit=True) == [""]
        buffer = bytearray(150)
        reading = store.begin_get(["k"])
        assert reading.read({0: [(50, [memoryview(buffer)])]}) == {0: True}
        assert buffer == b"a" * 50 + b"b" * 100
        assert store.read_ranges(["k", "missing"], [[(0, [memoryview(buffer)])], []]) == ["", MISSING]
        assert buffer == b"a" * 100 + b"b" * 50


def test_closing_ends_calls_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = PoolDriver._ask
    entered = threading.Event()

    async def for_ever() -> Any:
        entered.set()
        await asyncio.Event().wait()

    def silent(self: PoolDriver, message: Any, call: Any) -> Any:
        return for_ever() if isinstance(message, Exists) else ask(self, message, call)

    with blocking_world("a") as w:
        monkeypatch.setattr(PoolDriver, "_ask", silent)
        w.restart_master()
        store = w.store()
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(store.exists, ["k"])
            assert entered.wait(10)
            store.close()
            with pytest.raises(PeerUnreachable):
                call.result(10)
        with pytest.raises(PeerUnreachable, match="closed"):
            store.exists(["k"])


def _kill_when(held: list[str]) -> None:
    """Interrupts the main thread once something waits at the gate."""
    while not held:
        pass
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
