"""P2P stores of one process and of several."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mooncake_core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ObjectExists,
    ObjectNotFound,
    OutOfRange,
    PeerUnreachable,
    TransferError,
)
from mooncake_core.p2p import P2PStore

pytestmark = pytest.mark.timeout(120)
SHARD = 64 << 10


def test_a_replica_is_fetched_and_then_a_source() -> None:
    content = os.urandom(1_000_001)
    with (
        P2PStore() as trainer,
        P2PStore(directory=trainer.directory) as one,
        P2PStore(directory=trainer.directory) as two,
    ):
        trainer.register("weights", bytearray(content), shard_bytes=SHARD)
        first, second = bytearray(len(content)), bytearray(len(content))
        one.get_replica("weights", first)
        assert first == content
        trainer.delete_replica("weights")
        (found,) = two.list()
        assert found.shards_held == {one.name: 16}
        assert two.size_bytes("weights") == len(content)
        two.get_replica("weights", second)
        assert second == content
        one.delete_replica("weights")
        two.delete_replica("weights")
        assert trainer.list() == []


def test_memory_may_be_cut_otherwise_at_each_end() -> None:
    values = [np.random.default_rng(number).random(1000 * number) for number in range(1, 6)]
    with P2PStore() as trainer, P2PStore(directory=trainer.directory) as server:
        trainer.register("layers", values, shard_bytes=10_007)
        sinks = [np.zeros(4321), np.zeros(15_000 - 4321)]
        server.get_replica("layers", sinks)
        assert np.array_equal(np.concatenate(sinks), np.concatenate(values))


def test_shared_memory_of_the_store() -> None:
    with P2PStore() as trainer, P2PStore(directory=trainer.directory) as server:
        source, sink = trainer.allocate(300_000), server.allocate(300_000)
        source.view[:] = os.urandom(300_000)
        trainer.register("weights", source.view, shard_bytes=SHARD)
        server.get_replica("weights", sink.view)
        assert sink.view == source.view
        server.delete_replica("weights")
        trainer.delete_replica("weights")


def test_many_fetch_one_object_at_once() -> None:
    content = os.urandom(4 << 20)
    with P2PStore() as trainer:
        trainer.register("weights", bytearray(content), shard_bytes=SHARD)
        stores = [P2PStore(directory=trainer.directory) for _ in range(4)]

        def fetch(store: P2PStore) -> bool:
            sink = bytearray(len(content))
            store.get_replica("weights", sink, num_threads=2)
            return sink == content

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(fetch, stores)) == [True] * 4
        assert set(trainer.list()[0].shards_held.values()) == {64}
        for store in stores:
            store.close()


def test_what_cannot_be_is_said() -> None:
    with P2PStore() as trainer, P2PStore(directory=trainer.directory) as server:
        memory = bytearray(1000)
        trainer.register("weights", memory)
        with pytest.raises(ObjectExists, match="already"):
            trainer.register("weights", bytearray(10))
        with pytest.raises(ObjectExists, match="other bytes"):
            server.register("weights", bytearray(b"x" * 1000))
        with pytest.raises(InvalidRequest, match="has 1000 bytes, the memory for it 999"):
            server.get_replica("weights", bytearray(999))
        with pytest.raises(ObjectNotFound, match="nobody holds nothing"):
            server.get_replica("nothing", bytearray(10))
        with pytest.raises(ObjectNotFound, match="does not hold"):
            server.delete_replica("weights")
        with pytest.raises(OutOfRange, match="read-only"):
            server.register("bytes", b"abc")
        with pytest.raises(InvalidRequest, match="at least one byte"):
            server.register("shards", bytearray(10), shard_bytes=0)
        with pytest.raises(InvalidRequest, match="expected memory"):
            server.register("nothing", [])
        server.get_replica("weights", bytearray(1000))  # after all of that
        with pytest.raises(ObjectExists):
            server.get_replica("weights", bytearray(1000))


def test_the_same_bytes_may_be_registered_by_several() -> None:
    with P2PStore() as one, P2PStore(directory=one.directory) as two:
        one.register("weights", bytearray(b"same" * 100))
        two.register("weights", bytearray(b"same" * 100))
        assert one.list()[0].shards_held == {one.name: 1, two.name: 1}


def test_memory_that_was_written_to_since_is_not_taken() -> None:
    with P2PStore() as trainer, P2PStore(directory=trainer.directory) as server:
        memory = bytearray(1000)
        trainer.register("weights", memory)
        memory[500] = 1
        with pytest.raises(TransferError, match="not the bytes that were registered"):
            server.get_replica("weights", bytearray(1000))
        assert server.list() == []  # nobody has these bytes any more
        trainer.delete_replica("weights")
        trainer.register("weights", memory)
        server.get_replica("weights", bytearray(1000))


def test_without_a_directory() -> None:
    trainer = P2PStore()
    server = P2PStore(directory=trainer.directory)
    trainer.close()
    with pytest.raises(PeerUnreachable):
        server.register("weights", bytearray(10))
    server.close()


HOLDER = """
import sys
from mooncake_core.p2p import P2PStore
store = P2PStore(directory=sys.argv[1])
memory = bytearray(int(sys.argv[2]))
store.get_replica("weights", memory)
print(store.name, flush=True)
sys.stdin.read()
"""


def test_a_source_that_is_killed_is_replaced_and_missed_only_where_it_was_the_last(tmp_path: Path) -> None:
    size = 2 << 20
    with P2PStore() as directory, P2PStore(directory=directory.directory) as server:
        content = os.urandom(size)
        origin = P2PStore(directory=directory.directory)
        origin.register("weights", bytearray(content), shard_bytes=SHARD)
        command = [sys.executable, "-c", HOLDER, directory.directory, str(size)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            name = other.stdout.readline().strip()
            assert server.list()[0].shards_held == {origin.name: 32, name: 32}
            other.kill()
        sink = bytearray(size)
        server.get_replica("weights", sink)  # the dead one is still in the directory
        assert sink == content
        server.delete_replica("weights")
        origin.delete_replica("weights")
        began = time.monotonic()
        with pytest.raises(TransferError, match="nobody has all of weights any more"):
            server.get_replica("weights", sink, timeout_s=60)
        assert time.monotonic() - began < 40
        origin.close()


def test_a_fetch_has_a_deadline_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with P2PStore() as trainer, P2PStore(directory=trainer.directory) as server:
        trainer.register("weights", bytearray(1000), shard_bytes=10)
        with pytest.raises(DeadlineExceeded, match="in time"):
            server.get_replica("weights", bytearray(1000), timeout_s=0)
        assert trainer.list()[0].shards_held == {trainer.name: 100}
        assert not [thread for thread in threading.enumerate() if thread.name == "p2p-pull"]
        server.get_replica("weights", bytearray(1000))
