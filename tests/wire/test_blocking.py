"""The control plane for threads: by the door, and without one."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from mooncake_core.address import HostPort
from mooncake_core.errors import MooncakeError, PeerUnreachable, ProtocolError, RequestRejected, VersionMismatch
from mooncake_core.wire.auth import ClusterKey
from mooncake_core.wire.blocking import BlockingClient
from mooncake_core.wire.client import Client
from mooncake_core.wire.envelope import MAX_MESSAGE_BYTES, Cutter, Hello, Kind, encode_part, pack
from mooncake_core.wire.loop_thread import LoopThread
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.pool import Exists, ExistsReply
from mooncake_core.wire.messages.serving import Release
from mooncake_core.wire.server import Call, Server

ANY = HostPort("127.0.0.1", 0)


def exists(message: Exists, call: Call) -> ExistsReply:
    return ExistsReply(present=[key.startswith("y") for key in message.keys])


async def reject(message: Release, call: Call) -> Done:
    raise RequestRejected(f"{call.peer} asks too much", retry_after_s=2.5)


class Here:
    """A server on a loop of its own, and clients for threads on another one."""

    def __init__(self, loop: LoopThread, **options: Any) -> None:
        self.loop = loop
        self.options = {"door": True, **options}
        self.server = Server("server", {Exists: exists, Release: reject}, **self.options)
        self.address = loop.run(self.server.start(ANY))
        self.client_loop = LoopThread("client")
        self.clients: list[tuple[Client, BlockingClient]] = []

    def client(self, busy_poll_s: float = 0.0, **options: Any) -> BlockingClient:
        inner = Client(self.address.url, name="client", key=self.options.get("key"), **options)
        client = BlockingClient(inner, self.client_loop, busy_poll_s)
        self.clients.append((inner, client))
        return client

    def restart(self) -> None:
        self.loop.run(self.server.close())
        self.server = Server("server", {Exists: exists, Release: reject}, **self.options)
        self.loop.run(self.server.start(self.address))


@contextmanager
def server(**options: Any) -> Iterator[Here]:
    loop = LoopThread("server")
    here = Here(loop, **options)
    try:
        yield here
    finally:
        for inner, client in here.clients:
            client.close()
            here.client_loop.run(inner.close())
        here.client_loop.close(_nothing)
        loop.run(here.server.close())
        loop.close(_nothing)


@pytest.mark.parametrize("busy_poll_s", [0.0, 50e-6])
@pytest.mark.parametrize("options", [{}, {"door": False}, {"key": ClusterKey.generate()}])
def test_a_call_gets_its_reply_with_and_without_a_door(options: dict[str, Any], busy_poll_s: float) -> None:
    with server(**options) as here:
        client = here.client(busy_poll_s)
        for _ in range(3):
            assert client.call(Exists(keys=["yes", "no"]), ExistsReply, timeout_s=5).present == [True, False]
        assert (client._port != 0) is (options == {})
        assert client.call_surely(Exists(keys=["y"]), ExistsReply, timeout_s=5) == (ExistsReply(present=[True]), None)


@pytest.mark.parametrize("door", [True, False])
def test_errors_cross_the_wire_as_what_they_were(door: bool) -> None:
    with server(door=door) as here:
        client = here.client()
        with pytest.raises(RequestRejected, match="client asks too much") as caught:
            client.call(Release(request_id="r"), Done, timeout_s=5)
        assert caught.value.detail == {"retry_after_s": 2.5}
        with pytest.raises(ProtocolError, match="expected Done"):
            client.call(Exists(keys=[]), Done, timeout_s=5)
        assert client.call(Exists(keys=["y"]), ExistsReply, timeout_s=5).present == [True]


def test_long_questions_and_answers_come_whole() -> None:
    with server() as here:
        client = here.client()
        for count in (100_000, 1, 300_000):
            keys = ["y" * (1 + number % 50) for number in range(count)]
            assert client.call(Exists(keys=keys), ExistsReply, timeout_s=20).present == [True] * count


def test_threads_at_once_each_get_their_own_reply() -> None:
    with server() as here:
        client = here.client()

        def ask(number: int) -> bool:
            keys = ["y" if bit == "1" else "n" for bit in f"{number:b}"]
            found = client.call(Exists(keys=keys), ExistsReply, timeout_s=20).present
            return found == [key == "y" for key in keys]

        with ThreadPoolExecutor(10) as pool:
            assert all(pool.map(ask, range(500)))
        assert len(client._idle) <= 10


def test_a_server_that_starts_again_is_found_again() -> None:
    with server() as here:
        client = here.client()
        assert client.call(Exists(keys=["y"]), ExistsReply, timeout_s=5).present == [True]
        doors = {client._port}
        for _ in range(3):
            here.restart()
            assert client.call(Exists(keys=["y"]), ExistsReply, timeout_s=5).present == [True]
            doors.add(client._port)
        assert len(doors) > 1


def test_a_door_that_does_not_open_costs_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with server() as here:
        client = here.client()
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            port = nobody.getsockname()[1]

            async def elsewhere(**_: object) -> int:
                return int(port)

            monkeypatch.setattr(client._client, "door", elsewhere)
            assert client.call(Exists(keys=["y"]), ExistsReply, timeout_s=5).present == [True]
            assert client._shut_until > 0


def test_versions_without_one_in_common_are_refused() -> None:
    with server(versions=(1, 2)) as here:
        with pytest.raises(VersionMismatch, match="upgrade server"):
            here.client(versions=(3, 4)).call(Exists(keys=[]), ExistsReply, timeout_s=5)


def test_a_call_after_the_end_and_one_after_a_fork_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with server() as here:
        client = here.client()
        client.call(Exists(keys=[]), ExistsReply, timeout_s=5)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(PeerUnreachable, match="forked"):
            client.call(Exists(keys=[]), ExistsReply, timeout_s=5)
        client.close()
        with pytest.raises(PeerUnreachable, match="closed"):
            client.call(Exists(keys=[]), ExistsReply, timeout_s=5)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n" + bytes(100),
        struct.pack("<cQII", b"Q", 1, 0, MAX_MESSAGE_BYTES + 1),
        pack(Kind.WELCOME, 0, encode_part(Hello(name="x", oldest=1, newest=1))),
        pack(Kind.REQUEST, 1, b"", b""),
    ],
)
def test_garbage_at_the_door_does_not_hurt_the_server(garbage: bytes) -> None:
    with server() as here:
        client = here.client()
        client.call(Exists(keys=[]), ExistsReply, timeout_s=5)
        with socket.create_connection(("127.0.0.1", client._port or 0), 5) as raw:
            raw.sendall(garbage)
            raw.recv(1000)  # shown out, or told what is wrong
        assert client.call(Exists(keys=["y"]), ExistsReply, timeout_s=5).present == [True]


def test_whoever_leaves_ends_what_runs_for_him() -> None:
    with server() as here:
        ended = asyncio.Event()
        began = asyncio.Event()

        async def for_ever(message: Release, call: Call) -> Done:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return Done()

        here.server._handlers[Release] = for_ever
        client = here.client()
        with pytest.raises(MooncakeError, match="Release"):
            client.call(Release(request_id="r"), Done, timeout_s=0.2)
        here.loop.run(asyncio.wait_for(ended.wait(), 10))


@pytest.mark.parametrize("step", [1, 7, 17, 18, 1000])
def test_a_stream_is_cut_into_envelopes_wherever_it_is_broken(step: int) -> None:
    sent = [pack(Kind.REQUEST, number, b"h" * (number % 5), b"b" * (number * 13 % 300)) for number in range(40)]
    stream = b"".join(sent)
    cutter = Cutter()
    found = [
        envelope for start in range(0, len(stream), step) for envelope in cutter.feed(stream[start : start + step])
    ]
    assert [pack(*envelope) for envelope in found] == sent


async def _nothing() -> None:
    pass
