"""The shm transport keeps the contract, and what only shared memory can do wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mooncake_core.errors import PathFailed
from mooncake_core.testing.transport_contract import Ends, TransportContract
from mooncake_core.transfer.addresses import address_of
from mooncake_core.transfer.contract import Kind, Range, TransportSettings
from mooncake_core.transfer.engine import TransferEngine, first_error
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_shm import ShmTransport
from mooncake_shm.control import SLOTS, ControlPage, PeerPage

TARGET = """
import sys, time
from mooncake_core.transfer.contract import TransportSettings
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_shm import ShmTransport
target = ShmTransport(TransportSettings(owner='t', host_id='h', incarnation=2))
memory = SharedMemory('t', 64 << 20)
handle = target.register(memory.view, memory.descriptor)
path = target.export(handle, writable=True)
print(path.hex(), flush=True)
for line in sys.stdin:
    started = time.monotonic()
    target.withdraw(path)
    print(f'{time.monotonic() - started:.3f}', flush=True)
"""


class TestShm(TransportContract):
    transport = ShmTransport


class Target:
    """A target in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", TARGET], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.path = bytes.fromhex(self.line())

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_bytes_cross_processes_without_a_socket() -> None:
    ends = Ends(ShmTransport)
    with Target() as target:
        source = os.urandom(3 << 20)
        assert ends.transfer(Kind.WRITE, target.path, [memoryview(source)], 12345) is None
        here = bytearray(len(source))
        assert ends.transfer(Kind.READ, target.path, [memoryview(here)], 12345) is None
        assert here == source
    ends.close()


def test_a_killed_peer_is_a_failed_path_and_its_memory_is_unmapped() -> None:
    ends = Ends(ShmTransport)
    with Target() as target:
        assert ends.transfer(Kind.WRITE, target.path, [memoryview(b"x" * 100)], 0) is None
        assert _mapped() > 0
        os.kill(target.process.pid, signal.SIGKILL)
        target.process.wait()
        error = ends.transfer(Kind.WRITE, target.path, [memoryview(b"x")], 0)
        if error is None:  # copied before the kernel said that the peer is gone
            time.sleep(0.1)
            error = ends.transfer(Kind.WRITE, target.path, [memoryview(b"x")], 0)
        assert isinstance(error, PathFailed)
        assert error.detail["errno"] > 0
        deadline = time.monotonic() + 5
        while _mapped() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert _mapped() == 0
    ends.close()


def test_withdrawing_waits_for_a_copy_of_another_process_under_way() -> None:
    with Target() as target:
        ends = Ends(ShmTransport)
        assert ends.transfer(Kind.WRITE, target.path, [memoryview(b"x")], 0) is None
        peer = _peer(ends)
        slot = _slot(target.path)
        assert peer._page.enter(*slot)
        assert target.process.stdin is not None
        target.process.stdin.write("withdraw\n")
        target.process.stdin.flush()
        time.sleep(0.3)
        assert not peer._page.enter(*slot), "withdrawn already, but not finished"
        peer._page.leave(slot[0])
        assert float(target.line()) > 0.2
        ends.close()


def test_the_locks_of_a_dead_initiator_are_gone() -> None:
    page = ControlPage()
    opened = page.open_slot()
    assert opened is not None
    code = (
        "import os, sys\nfrom mooncake_shm.control import PeerPage\n"
        f"page = PeerPage({page.fd})\nassert page.enter({opened[0]}, {opened[1]})\n"
        "print('in', flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code], pass_fds=[page.fd], stdout=subprocess.DEVNULL, check=False)
    assert page.close_slot(opened[0], patience_s=1.0)
    page.close()


def test_a_control_page_that_cannot_be_mapped_is_not_kept_open() -> None:
    short = SharedMemory("short", 4096)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError):
        PeerPage(short.descriptor)
    assert len(os.listdir("/proc/self/fd")) <= before
    short.close()


def test_threads_that_copy_at_once_share_a_slot() -> None:
    page = ControlPage()
    opened = page.open_slot()
    assert opened is not None
    peer = PeerPage(page.fd)
    assert peer.enter(*opened)
    assert peer.enter(*opened)
    peer.leave(opened[0])
    assert not page.close_slot(opened[0], patience_s=0.02)
    peer.leave(opened[0])
    assert page.close_slot(opened[0], patience_s=1.0)
    assert not peer.enter(*opened)
    peer.close()
    page.close()


def test_memory_without_a_descriptor_and_slots_all_taken_offer_no_path() -> None:
    transport = ShmTransport(TransportSettings(owner="t", host_id="h", incarnation=1))
    assert transport.export(transport.register(memoryview(bytearray(10))), writable=True) is None
    memory = SharedMemory("t", 4096)
    handle = transport.register(memory.view, memory.descriptor)
    paths = [transport.export(handle, writable=False) for _ in range(SLOTS)]
    assert None not in paths
    assert transport.export(handle, writable=False) is None
    transport.withdraw(paths[5] or b"")
    assert transport.export(handle, writable=False, ranges=[Range(0, 1)]) is not None
    transport.close()
    memory.close()


def test_readers_get_memory_they_cannot_write() -> None:
    ends = Ends(ShmTransport)
    path = ends.export(writable=False)
    assert ends.transfer(Kind.READ, path, [memoryview(bytearray(1))], 0) is None
    peer = _peer(ends)
    assert [memory.readonly for memory in peer._maps.values()] == [True]
    ends.close()


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_addresses_are_those_of_the_bytes(kind: type) -> None:
    view = memoryview(kind(b"abcdef"))
    assert address_of(view[2:]) == address_of(view) + 2


async def test_the_engine_takes_shm_on_one_host_and_tcp_for_another_host_id() -> None:
    def engine(owner: str, host_id: str, number: int) -> TransferEngine:
        return TransferEngine(owner=owner, host_id=host_id, incarnation=number, transports=["shm", "tcp"])

    owner, near, far = engine("owner", "one", 1), engine("near", "one", 2), engine("far", "two", 3)
    memory = SharedMemory("t", 1 << 20)
    descriptor = owner.export(owner.register_memory(memory.view, memory.descriptor), writable=True)
    for other, path in ((near, "shm"), (far, "tcp")):
        batch = other.allocate_batch(1)
        from mooncake_core.transfer.engine import TransferRequest

        other.submit(batch, [TransferRequest(Kind.WRITE, (memoryview(b"hello"),), descriptor, (Range(7, 5),))])
        assert other.wait(batch, 10)
        assert batch.transfers[0].error is None
        assert batch.transfers[0].path == path
    plain = owner.register_memory(bytearray(100))
    reply = await near.read(owner.export(plain, writable=False), [([memoryview(bytearray(100))], 0)])
    assert first_error(reply) is None, "memory without a descriptor goes over tcp"
    for one in (near, far, owner):
        one.close()
    memory.close()


def _slot(path: bytes) -> tuple[int, int]:
    import msgspec

    from mooncake_shm.transport import ShmPath

    named = msgspec.msgpack.decode(path, type=ShmPath)
    return named.slot, named.generation


def _peer(ends: Ends) -> Any:
    """The initiator's only one."""
    (known,) = ends.initiator._peers._known.values()  # type: ignore[attr-defined]
    return known.peer


def _mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:mooncake-t ")
