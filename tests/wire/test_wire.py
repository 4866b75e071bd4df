"""The control plane over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from mooncake_core.address import HostPort
from mooncake_core.errors import (
    AuthenticationFailed,
    ConfigError,
    DeadlineExceeded,
    MooncakeError,
    NoSpace,
    PeerUnreachable,
    ProtocolError,
    RequestRejected,
    UsageError,
    VersionMismatch,
    WireError,
)
from mooncake_core.wire.auth import ClusterKey
from mooncake_core.wire.client import Client, Clients
from mooncake_core.wire.messages.envelope import Done, Ping
from mooncake_core.wire.messages.pool import Exists, ExistsReply, Remove
from mooncake_core.wire.messages.serving import Decode, Release, Sampling, Tokens
from mooncake_core.wire.server import Call, Handler, Server
from mooncake_core.wire.sync import SyncClient

ANY = HostPort("127.0.0.1", 0)


def decode_request(request_id: str = "r") -> Decode:
    return Decode(request_id=request_id, reservation_id=1, prompt_tokens=3, first_token_id=4, sampling=Sampling())


class Pair:
    """A server and a client that know each other."""

    def __init__(self, handlers: dict[type, Handler], **options: object) -> None:
        self.server = Server("server", handlers, **options)  # type: ignore[arg-type]
        self.options = options
        self.address = ANY

    async def __aenter__(self) -> Client:
        self.address = await self.server.start(ANY)
        self.client = Client(self.address.url, name="client", key=self.options.get("key"))  # type: ignore[arg-type]
        return self.client

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self.server.close()


async def exists(message: Exists, call: Call) -> ExistsReply:
    return ExistsReply(present=[key.startswith("y") for key in message.keys])


async def test_a_call_gets_its_reply_and_the_server_knows_who_asks() -> None:
    peers: list[str] = []

    async def handler(message: Exists, call: Call) -> ExistsReply:
        peers.append(call.peer)
        return await exists(message, call)

    async with Pair({Exists: handler}) as client:
        reply = await client.call(Exists(keys=["yes", "no"]), ExistsReply, timeout_s=5)
    assert reply.present == [True, False]
    assert peers == ["client"]


async def test_a_thousand_calls_at_once_each_get_their_own_reply() -> None:
    async def handler(message: Exists, call: Call) -> ExistsReply:
        await asyncio.sleep(0)
        return ExistsReply(present=[True] * len(message.keys))

    async with Pair({Exists: handler}) as client:
        calls = [client.call(Exists(keys=["k"] * (n % 7)), ExistsReply, timeout_s=20) for n in range(1000)]
        replies = await asyncio.gather(*calls)
    assert [len(reply.present) for reply in replies] == [n % 7 for n in range(1000)]


async def test_errors_cross_the_wire_as_what_they_were() -> None:
    async def handler(message: Release, call: Call) -> Done:
        raise RequestRejected("the queue is full", retry_after_s=2.5)

    async with Pair({Release: handler}) as client:
        with pytest.raises(RequestRejected, match="the queue is full") as caught:
            await client.call(Release(request_id="r"), Done, timeout_s=5)
    assert caught.value.detail == {"retry_after_s": 2.5}


async def test_a_bug_in_a_handler_is_a_reply_too(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(message: Release, call: Call) -> Done:
        raise ZeroDivisionError("oops")

    async with Pair({Release: handler}) as client:
        with pytest.raises(MooncakeError, match="ZeroDivisionError: oops"):
            await client.call(Release(request_id="r"), Done, timeout_s=5)
    assert "Traceback" in caplog.text


async def test_unknown_requests_and_wrong_replies_are_protocol_errors() -> None:
    async with Pair({Exists: exists}) as client:
        with pytest.raises(ProtocolError, match="does not answer Remove"):
            await client.call(Remove(keys=[]), Done, timeout_s=5)
        with pytest.raises(ProtocolError, match="expected Done"):
            await client.call(Exists(keys=[]), Done, timeout_s=5)


async def test_a_deadline_ends_the_call_at_both_ends() -> None:
    cancelled = asyncio.Event()

    async def handler(message: Release, call: Call) -> Done:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()
        return Done()

    async with Pair({Release: handler}) as client:
        with pytest.raises(DeadlineExceeded, match="Release within 0.05s|took too long"):
            await client.call(Release(request_id="r"), Done, timeout_s=0.05)
        await asyncio.wait_for(cancelled.wait(), 5)


async def test_a_stream_yields_in_order_and_ends() -> None:
    async def handler(message: Decode, call: Call) -> Done:
        for token in range(50):
            call.reply(Tokens(token_ids=[token]))
            await asyncio.sleep(0.0001 * (token % 3))
        return Done()

    async with Pair({Decode: handler}) as client:
        stream = client.stream(decode_request(), Tokens, timeout_s=5)
        tokens = [reply.token_ids[0] async for replies in stream for reply in replies]
    assert tokens == list(range(50))


async def test_replies_that_came_meanwhile_come_together() -> None:
    async def handler(message: Decode, call: Call) -> Done:
        for token in range(3):
            call.reply(Tokens(token_ids=[token]))
        return Done()

    async with Pair({Decode: handler}) as client:
        found = [replies async for replies in client.stream(decode_request(), Tokens, timeout_s=5)]
    assert [[reply.token_ids for reply in replies] for replies in found] == [[[0], [1], [2]]]


async def test_a_stream_that_lasts_too_long_ends_at_its_deadline_after_what_came() -> None:
    async def handler(message: Decode, call: Call) -> Done:
        call.reply(Tokens(token_ids=[1]))
        await asyncio.sleep(60)
        return Done()

    seen = []
    async with Pair({Decode: handler}) as client:
        with pytest.raises(DeadlineExceeded, match="Decode"):
            async for replies in client.stream(decode_request(), Tokens, timeout_s=0.3):
                seen += replies
    assert [reply.token_ids for reply in seen] == [[1]]


async def test_leaving_a_stream_cancels_its_handler() -> None:
    cancelled = asyncio.Event()

    async def handler(message: Decode, call: Call) -> Done:
        try:
            while True:
                call.reply(Tokens(token_ids=[1]))
                await asyncio.sleep(0.001)
        finally:
            cancelled.set()

    async with Pair({Decode: handler}) as client:
        stream = client.stream(decode_request(), Tokens, timeout_s=5)
        await anext(stream)
        await stream.aclose()
        await asyncio.wait_for(cancelled.wait(), 5)


async def test_an_error_ends_a_stream_after_what_came_before() -> None:
    async def handler(message: Decode, call: Call) -> Done:
        call.reply(Tokens(token_ids=[7]))
        raise NoSpace("full")

    seen = []
    async with Pair({Decode: handler}) as client:
        with pytest.raises(NoSpace):
            async for replies in client.stream(decode_request(), Tokens, timeout_s=5):
                seen += replies
    assert [reply.token_ids for reply in seen] == [[7]]


async def test_nobody_there_is_reported_soon() -> None:
    client = Client("tcp://127.0.0.1:1", name="client")
    started = time.monotonic()
    with pytest.raises(PeerUnreachable):
        await client.call(Ping(), Done, timeout_s=60)
    assert time.monotonic() - started < 10
    await client.close()


async def test_a_server_that_closes_answers_what_is_open() -> None:
    entered = asyncio.Event()

    async def handler(message: Release, call: Call) -> Done:
        entered.set()
        await asyncio.sleep(60)
        return Done()

    pair = Pair({Release: handler})
    client = await pair.__aenter__()
    call = asyncio.create_task(client.call(Release(request_id="r"), Done, timeout_s=30))
    await asyncio.wait_for(entered.wait(), 5)
    await pair.server.close()
    with pytest.raises(MooncakeError):
        await asyncio.wait_for(call, 5)
    await client.close()


async def test_a_restarted_server_is_found_again() -> None:
    first = Server("first", {Exists: exists})
    address = await first.start(ANY)
    client = Client(address.url, name="client")
    await client.call(Exists(keys=[]), ExistsReply, timeout_s=5)
    await first.close()
    second = Server("second", {Exists: exists})
    await second.start(address)
    await _until(lambda: client.call(Exists(keys=[]), ExistsReply, timeout_s=5))
    await client.close()
    await second.close()


async def test_a_killed_server_fails_its_calls_at_once() -> None:
    code = """
import asyncio, sys
from mooncake_core.address import HostPort
from mooncake_core.wire.messages.serving import Release
from mooncake_core.wire.server import Server
async def hang(message, call):
    await asyncio.sleep(60)
async def main():
    print(await Server('victim', {Release: hang}).start(HostPort('127.0.0.1', 0)), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        client = Client(f"tcp://{address}", name="client")
        await client.call(Ping(), Done, timeout_s=10)
        call = asyncio.create_task(client.call(Release(request_id="r"), Done, timeout_s=60))
        await asyncio.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(PeerUnreachable):
            await asyncio.wait_for(call, 10)
        await client.close()


async def test_a_port_in_use_is_named() -> None:
    first = Server("first", {})
    address = await first.start(ANY)
    second = Server("second", {})
    with pytest.raises(WireError, match=f"cannot listen on {address}.*another process uses port {address.port}"):
        await second.start(address)
    await second.close()
    await first.close()


@pytest.mark.parametrize("garbage", [[b""], [b"x"] * 4, [b"Q", b"12345678", b"", b""], [b"Q", b"1", b"", b""]])
async def test_garbage_does_not_hurt_the_server(garbage: list[bytes]) -> None:
    pair = Pair({Exists: exists})
    async with pair as client:
        with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
            raw.linger = 0
            raw.connect(pair.address.url)
            raw.send_multipart(garbage)
            await asyncio.sleep(0.02)
            reply = await client.call(Exists(keys=["y"]), ExistsReply, timeout_s=5)
    assert reply.present == [True]


async def test_versions_n_and_n_plus_1_work_together_and_others_are_refused() -> None:
    server = Server("server", {Exists: exists}, versions=(1, 2))
    address = await server.start(ANY)
    old = Client(address.url, name="old", versions=(1, 1))
    await old.call(Exists(keys=[]), ExistsReply, timeout_s=5)
    newest = Client(address.url, name="newest", versions=(3, 4))
    with pytest.raises(VersionMismatch, match="server speaks protocol versions 1 to 2, newest 3 to 4: upgrade server"):
        await newest.call(Exists(keys=[]), ExistsReply, timeout_s=5)
    for client in (old, newest):
        await client.close()
    await server.close()


async def test_the_master_of_another_cluster_is_not_taken_for_the_own_one() -> None:
    server = Server("master", {Exists: exists}, cluster="local")
    address = await server.start(ANY)
    clients = Clients("node", clusters={address.url: "other"})
    with pytest.raises(ConfigError, match=f"{address.url} is the master of cluster local, not of other: give other a"):
        await clients.get(address.url).call(Exists(keys=[]), ExistsReply, timeout_s=5)
    for cluster in ("local", ""):  # whoever says nothing, as programs through the drop-in, is answered
        client = Client(address.url, name="client", cluster=cluster)
        await client.call(Exists(keys=[]), ExistsReply, timeout_s=5)
        await client.close()
    await clients.close()
    await server.close()


async def test_a_server_that_names_no_cluster_may_be_of_any() -> None:
    server = Server("older", {Exists: exists})
    address = await server.start(ANY)
    client = Client(address.url, name="client", cluster="local")
    await client.call(Exists(keys=[]), ExistsReply, timeout_s=5)
    await client.close()
    await server.close()


async def test_the_same_key_at_both_ends_works() -> None:
    async with Pair({Exists: exists}, key=ClusterKey.generate()) as client:
        reply = await client.call(Exists(keys=["y"]), ExistsReply, timeout_s=5)
    assert reply.present == [True]


@pytest.mark.parametrize("case", ["wrong key", "no key", "stolen server key", "key where none is expected"])
async def test_a_wrong_key_is_an_error_at_once_and_not_a_time_out(case: str) -> None:
    key = ClusterKey.generate()
    other = ClusterKey.generate()
    stolen = ClusterKey(
        server_public=key.server_public,
        server_secret="",
        client_public=other.client_public,
        client_secret=other.client_secret,
        data_secret="",
    )
    server_key = None if case.startswith("key where") else key
    client_key = {"wrong key": other, "no key": None, "stolen server key": stolen}.get(case, key)
    server = Server("server", {Exists: exists}, key=server_key)
    address = await server.start(ANY)
    client = Client(address.url, name="client", key=client_key)
    started = time.monotonic()
    with pytest.raises(AuthenticationFailed, match="auth.key_file"):
        await client.call(Exists(keys=[]), ExistsReply, timeout_s=30)
    assert time.monotonic() - started < 10
    await client.close()
    await server.close()


async def test_a_server_that_ends_before_its_welcome_is_gone_and_does_not_say_anything_of_keys() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    client = Client(f"tcp://127.0.0.1:{port}", name="client")
    asking = asyncio.create_task(client.call(Exists(keys=[]), ExistsReply, timeout_s=5))
    while not router.poll(0):  # its hello: the handshake went well
        await asyncio.sleep(0.002)
    context.destroy(linger=0)
    with pytest.raises(PeerUnreachable, match="broke before the first message"):
        await asking
    await client.close()


def test_a_key_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cluster.key"
    key = ClusterKey.generate()
    key.write(path)
    assert ClusterKey.load(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="exists already"):
        key.write(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        ClusterKey.load(path)
    path.chmod(0o600)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="no cluster key"):
        ClusterKey.load(path)
    with pytest.raises(ConfigError, match="mooncake auth init"):
        ClusterKey.load(tmp_path / "missing")


async def test_closing_leaves_no_descriptor_and_no_thread() -> None:
    async def once() -> None:
        async with Pair({Exists: exists}, key=ClusterKey.generate()) as client:
            await client.call(Exists(keys=[]), ExistsReply, timeout_s=5)

    await once()
    before = _resources()
    for _ in range(5):
        await once()
    assert _resources() == before


async def test_the_blocking_client_calls_from_a_thread() -> None:
    pair = Pair({Exists: exists})
    async with pair:

        def ask() -> list[bool]:
            client = SyncClient(pair.address.url, name="sync")
            try:
                return client.call(Exists(keys=["y", "n"]), ExistsReply, timeout_s=5).present
            finally:
                client.close()

        assert await asyncio.to_thread(ask) == [True, False]


async def test_clients_are_shared_by_address() -> None:
    clients = Clients("me")
    assert clients.get("tcp://127.0.0.1:2") is clients.get("tcp://127.0.0.1:2")
    await clients.close()


async def test_peers_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mooncake_core.wire.server.FEW_PEERS", 4)
    pair = Pair({Exists: exists})
    async with pair as stays:
        assert (await stays.call(Exists(keys=["y"]), ExistsReply, timeout_s=5)).present == [True]
        for number in range(20):
            client = Client(pair.address.url, name=f"c{number}")
            await client.call(Ping(), Done, timeout_s=5)
            await client.close()
            await asyncio.sleep(0.02)
        assert len(pair.server._peers) <= 8
        assert "client" in pair.server._peers.values()
        assert (await stays.call(Exists(keys=["y"]), ExistsReply, timeout_s=5)).present == [True]


async def test_clients_of_peers_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mooncake_core.wire.client.GONE_S", 0.2)
    clients = Clients("me")
    servers = [Server(f"s{number}", {}) for number in range(3)]
    addresses = [(await server.start(ANY)) for server in servers]
    gone, back, stays = (clients.get(address.url) for address in addresses)
    for client in (gone, back, stays):
        await client.call(Ping(), Done, timeout_s=5)
    files, _ = _resources()
    await servers[0].close()
    await servers[1].close()
    await asyncio.sleep(0.5)
    clients.get("tcp://127.0.0.1:1")
    assert set(clients._clients) == {addresses[2].url, "tcp://127.0.0.1:1"}
    assert _resources()[0] < files
    # Who still has one may use it: it connects anew.
    again = Server("s1", {})
    await again.start(addresses[1])
    await back.call(Ping(), Done, timeout_s=5)
    await stays.call(Ping(), Done, timeout_s=5)
    with pytest.raises(PeerUnreachable):
        await gone.call(Ping(), Done, timeout_s=1)
    await clients.close()
    for server in (again, servers[2]):
        await server.close()


def _resources() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


async def _until(attempt: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            await attempt()  # type: ignore[misc]
            return
        except PeerUnreachable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def test_a_client_of_a_closed_set_is_unreachable() -> None:
    clients = Clients("c")
    await clients.close()
    with pytest.raises(PeerUnreachable, match="was closed"):
        await clients.get("tcp://127.0.0.1:1").call(Ping(), Done, timeout_s=1)


async def test_giving_up_peers_that_are_gone_holds_up_nobody_else() -> None:
    """An event for a monitor whose receiving end was closed used to stop the thread of all zmq sockets."""

    async def ask(client: Client) -> None:
        with contextlib.suppress(MooncakeError):
            await client.call(Ping(), Done, timeout_s=1)

    server, clients = Server("s", {}), Clients("c")
    address = await server.start(HostPort("127.0.0.1", 0))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # does not listen
        port = nobody.getsockname()[1]
        gone = [f"tcp://127.0.0.{number}:{port}" for number in range(2, 62)]
        for _ in range(20):
            asking = [asyncio.create_task(ask(clients.get(address_of_gone))) for address_of_gone in gone]
            await asyncio.sleep(random.uniform(0.03, 0.12))
            for address_of_gone in gone:
                await clients.drop(address_of_gone)
            await asyncio.gather(*asking)
            await clients.get(address.url).call(Ping(), Done, timeout_s=5)
    await clients.close()
    await server.close()
