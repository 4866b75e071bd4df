"""Asks a server: calls with one reply, and streams of replies, each with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeVar

import zmq
from zmq.utils.monitor import parse_monitor_message

from mooncake_core.errors import (
    AuthenticationFailed,
    ConfigError,
    DeadlineExceeded,
    MooncakeError,
    PeerUnreachable,
    ProtocolError,
    from_wire,
)
from mooncake_core.wire.auth import ClusterKey
from mooncake_core.wire.channel import Channel, limit
from mooncake_core.wire.envelope import Envelope, Head, Hello, Kind, decode_hello, encode_part, pack, unpack
from mooncake_core.wire.messages import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, Message, decode, encode
from mooncake_core.wire.messages.envelope import Done, Failure, Ping
from mooncake_core.wire.versions import agree

HELLO_TIMEOUT_S: Final = 2.0
GONE_S: Final = 30.0
"""A peer that was not there for so long is not looked for any more, until somebody asks for it."""
HANDSHAKE_FAILURES: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
MONITORED: Final = HANDSHAKE_FAILURES | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED

M = TypeVar("M")
_log = logging.getLogger(__name__)


class Arrived(list[M]):
    """Replies that came together."""

    received = 0.0
    """time.monotonic() when the first of them came."""


class _Replies:
    """What has come for one request and was not taken yet."""

    __slots__ = ("_items", "_waiter", "received")

    def __init__(self) -> None:
        self._items: list[Message | MooncakeError] = []
        self.received = 0.0
        """time.monotonic() when the first of what was taken last came."""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_empty(self) -> bool:
        return not self._items

    def put(self, item: Message | MooncakeError) -> None:
        if not self._items:
            self.received = time.monotonic()
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Message | MooncakeError]:
        """All there are, at least one."""
        if not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        items, self._items = self._items, []
        return items


class _Told:
    """Takes the reply to what was told."""

    __slots__ = ("_on_end",)

    def __init__(self, on_end: Callable[[MooncakeError | None], None]) -> None:
        self._on_end = on_end

    def put(self, item: Message | MooncakeError) -> None:
        self._on_end(item if isinstance(item, MooncakeError) else None)


class Client:
    """Asks one server. Reconnects by itself when the server comes back at the same address."""

    def __init__(
        self,
        address: str,
        *,
        name: str,
        key: ClusterKey | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        versions: tuple[int, int] = (OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION),
        cluster: str = "",
    ) -> None:
        """`cluster`: whose master this is to be; empty: any server will do."""
        self.address = address
        self._key = key
        self._cluster = cluster
        self.hello = Hello(name=name, oldest=versions[0], newest=versions[1])
        self._owns_context = context is None
        self._context = context or zmq.Context()
        self._channel: Channel | None = None
        self._monitor: Channel | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Replies | _Told] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self._welcome: asyncio.Future[None] | None = None
        self._was_welcome = False
        self._door = 0
        self._watchers: set[asyncio.Future[None]] = set()
        self._lost_at: float | None = None
        """time.monotonic() since when nobody is there."""

    async def call(self, message: Message, reply_type: type[M], *, timeout_s: float) -> M:
        """The reply to a request.

        Raises:
            MooncakeError: the peer's own error, as it was raised there.
            ConfigError: it is the master of another cluster.
            PeerUnreachable: nobody is there, or the connection broke while waiting.
            DeadlineExceeded: no reply within timeout_s.
            ProtocolError: the reply is of another type.
        """
        number, replies, timer = await self._ask(message, timeout_s)
        try:
            reply, *_ = await replies.take()
        finally:
            timer.cancel()
            self._forget(number)
        return expected(self.address, reply, reply_type, message)

    def tell(self, message: Message, on_end: Callable[[MooncakeError | None], None], *, timeout_s: float) -> None:
        """As a call whose reply, Done, nobody awaits; `on_end` is told when it has come, or why it will not."""
        if not self._greeted():
            task = asyncio.get_running_loop().create_task(self._tell_later(message, on_end, timeout_s))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
            return
        try:
            self._start(message, timeout_s, _Told(on_end))
        except MooncakeError as error:
            on_end(error)

    async def stream(
        self, message: Message, reply_type: type[M], *, timeout_s: float
    ) -> AsyncGenerator[Arrived[M], None]:
        """The replies to a request; each time all that have come meanwhile. Closing the iterator early cancels the request
        at the peer.

        Raises as `call` does, after what came before; timeout_s is for the whole stream.
        """
        number, replies, timer = await self._ask(message, timeout_s)
        try:
            while True:
                good: Arrived[M] = Arrived()
                came = await replies.take()
                good.received = replies.received
                for reply in came:
                    if isinstance(reply, Done | MooncakeError):
                        if good:
                            yield good
                        if isinstance(reply, Done):
                            return
                        raise reply
                    good.append(expected(self.address, reply, reply_type, message))
                yield good
                if number not in self._waiting and replies.is_empty:  # the last reply was one of those
                    return
        finally:
            timer.cancel()
            self._forget(number)

    async def door(self, *, timeout_s: float) -> int:
        """The port at which the server takes clients that block (door.py), 0 where it does not. Raises as `call` does."""
        await self.call(Ping(), Done, timeout_s=timeout_s)
        return self._door

    def lost(self) -> asyncio.Future[None]:
        """A future that is done when the connection breaks; cancel it when nobody waits for that any more."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.add(future)
        future.add_done_callback(self._watchers.discard)
        return future

    def is_idle(self, since_s: float) -> bool:
        """Whether nobody was there for so long, and nobody here waits for anything."""
        gone = self._lost_at is not None and time.monotonic() - self._lost_at >= since_s
        return gone and not (self._waiting or self._watchers or self._welcome)

    def rest(self) -> None:
        """Frees the socket, which would look for its peer for ever; whoever waits gets PeerUnreachable. The next call
        connects anew."""
        self._break(PeerUnreachable(f"the connection to {self.address} was closed"))
        for channel in (self._channel, self._monitor):  # the monitor's receiving end last
            if channel:
                channel.close()
        self._monitor = self._channel = None

    async def close(self) -> None:
        """As `rest`, for good where the context is this client's own. Idempotent."""
        self.rest()
        if self._owns_context and not self._context.closed:
            self._context.destroy()

    async def _ask(self, message: Message, timeout_s: float) -> tuple[int, _Replies, asyncio.TimerHandle]:
        """Its number, what comes, and the timer that ends it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        if not self._greeted():
            try:
                async with asyncio.timeout_at(deadline):
                    await self._greet()
            except TimeoutError as error:
                raise (error if isinstance(error, MooncakeError) else late(self.address, message, timeout_s)) from error
        replies = _Replies()
        number = self._start(message, timeout_s, replies)
        return number, replies, loop.call_at(deadline, self._time_out, replies, message, timeout_s)

    def _start(self, message: Message, timeout_s: float, waiting: _Replies | _Told) -> int:
        number = next(self._numbers)
        self._waiting[number] = waiting
        try:
            self._send(pack(Kind.REQUEST, number, encode_part(Head(timeout_s=timeout_s)), encode(message)))
        except MooncakeError:
            del self._waiting[number]
            raise
        return number

    def _time_out(self, replies: _Replies, message: Message, timeout_s: float) -> None:
        replies.put(late(self.address, message, timeout_s))

    async def _tell_later(
        self, message: Message, on_end: Callable[[MooncakeError | None], None], timeout_s: float
    ) -> None:
        try:
            await self.call(message, Done, timeout_s=timeout_s)
        except MooncakeError as error:
            on_end(error)
        else:
            on_end(None)

    def _forget(self, number: int) -> None:
        """The asker has its answer, or does not want it any more; then the peer is told."""
        replies = self._waiting.pop(number, None)
        if replies is not None and self._welcome is not None:
            with contextlib.suppress(PeerUnreachable):  # whoever is gone need not be told
                self._send(pack(Kind.CANCEL, number))

    async def _greet(self) -> None:
        """Says hello once per connection; all callers wait for the same welcome."""
        if self._welcome is None:
            self._connect()
            welcome = self._welcome = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().create_task(self._say_hello(welcome))
        await asyncio.shield(self._welcome)

    async def _say_hello(self, welcome: asyncio.Future[None]) -> None:
        deadline = asyncio.get_running_loop().time() + HELLO_TIMEOUT_S
        while not welcome.done():
            try:
                self._send(pack(Kind.HELLO, 0, encode_part(self.hello)))
                break
            except PeerUnreachable:  # not connected yet
                if asyncio.get_running_loop().time() > deadline:
                    break
                await asyncio.sleep(0.002)
        await asyncio.wait([welcome], timeout=max(0.0, deadline - asyncio.get_running_loop().time()))
        if not welcome.done():
            self._break(PeerUnreachable(f"nobody answers at {self.address} (waited {HELLO_TIMEOUT_S:g}s)"))

    def _connect(self) -> None:
        if self._channel is not None:
            return
        if self._context.closed:
            raise PeerUnreachable(f"the connection to {self.address} was closed")
        socket = self._context.socket(zmq.DEALER)
        limit(socket)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a peer that is not there
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        if self._key:
            socket.curve_serverkey = self._key.server_public.encode()
            socket.curve_publickey = self._key.client_public.encode()
            socket.curve_secretkey = self._key.client_secret.encode()
        self._monitor = Channel(socket.get_monitor_socket(MONITORED), self._on_event)
        socket.connect(self.address)
        self._channel = Channel(socket, self._on_frames)

    def _send(self, envelope: bytes) -> None:
        if self._channel is None:
            raise PeerUnreachable(f"not connected to {self.address}")
        try:
            self._channel.send([envelope])
        except zmq.ZMQError as error:
            raise PeerUnreachable(f"cannot send to {self.address}: {error.strerror}") from error

    def _on_frames(self, frames: list[bytes]) -> None:
        try:
            envelopes = unpack(frames)
        except MooncakeError as error:
            self._break(error)
            return
        for envelope in envelopes:
            self._on_envelope(envelope)

    def _on_envelope(self, envelope: Envelope) -> None:
        try:
            if envelope.kind is Kind.WELCOME:
                theirs = decode_hello(envelope.head)
                agree(self.hello, theirs)
                self._check_cluster(theirs)
                self._door = theirs.door
                self._was_welcome = True
                self._lost_at = None
                if self._welcome is not None and not self._welcome.done():
                    self._welcome.set_result(None)
                return
            message: Message | MooncakeError = decode(envelope.body)
        except MooncakeError as error:
            self._break(error)
            return
        if isinstance(message, Failure):
            message = from_wire(message.code, message.message, message.detail)
        if envelope.number == 0 and isinstance(message, MooncakeError):
            self._break(message)  # the hello was refused
            return
        replies = self._waiting.get(envelope.number)
        if replies is not None:
            if envelope.kind is Kind.LAST:
                del self._waiting[envelope.number]
            replies.put(message)

    def _on_event(self, frames: list[bytes]) -> None:
        event = parse_monitor_message(frames)["event"]
        if event & HANDSHAKE_FAILURES:
            self._break(self._handshake_error())
        elif event == zmq.EVENT_DISCONNECTED:
            lost = f"the connection to {self.address} broke"
            self._break(PeerUnreachable(lost if self._greeted() else f"{lost} before the first message"))
        elif event == zmq.EVENT_CONNECT_RETRIED and not self._greeted():
            self._break(PeerUnreachable(f"nobody listens at {self.address}"))

    def _check_cluster(self, theirs: Hello) -> None:
        """Raises ConfigError where a master is not of the cluster that is meant."""
        if self._cluster and theirs.cluster and theirs.cluster != self._cluster:
            raise ConfigError(
                f"{self.address} is the master of cluster {theirs.cluster}, not of {self._cluster}: give "
                f"{self._cluster} a master.port of its own, or correct master.host and master.port in the YAML"
            )

    def _greeted(self) -> bool:
        return self._welcome is not None and self._welcome.done() and self._welcome.exception() is None

    def _handshake_error(self) -> MooncakeError:
        if self._was_welcome:  # keys do not change: it is frozen, or ending
            return PeerUnreachable(f"{self.address} broke the connection before it said hello")
        why = (
            "the key given is not that of the cluster, or the cluster has none"
            if self._key
            else "no key was given, and the cluster expects one"
        )
        return AuthenticationFailed(
            f"{self.address} refused the connection before the first message: {why}; check auth.key_file in the YAML or "
            "$MOONCAKE_KEY_FILE"
        )

    def _break(self, error: MooncakeError) -> None:
        """Whoever waits gets the error; the next call says hello again."""
        self._lost_at = self._lost_at or time.monotonic()
        welcome, self._welcome = self._welcome, None
        if welcome is not None and not welcome.done():
            welcome.set_exception(error)
            welcome.exception()  # seen, whether or not a caller is left
        for watcher in list(self._watchers):
            if not watcher.done():
                watcher.set_result(None)
        waiting, self._waiting = self._waiting, {}
        for replies in waiting.values():
            replies.put(error)


class Clients:
    """One Client per address, all in one zmq context."""

    def __init__(
        self, name: str, key: ClusterKey | None = None, *, clusters: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`clusters`: address of a master → name of the cluster whose master it is to be."""
        self._name = name
        self._key = key
        self._clusters = clusters
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._clients: dict[str, Client] = {}

    def get(self, address: str) -> Client:
        """The client for an address; it connects when it is first used."""
        client = self._clients.get(address)
        if client is None:
            self._forget_gone()
            cluster = self._clusters.get(address, "")
            client = Client(address, name=self._name, key=self._key, context=self._context, cluster=cluster)
            self._clients[address] = client
        return client

    def _forget_gone(self) -> None:
        """What comes back has another address, mostly: nobody would ever ask for the old one again. Done whenever there is
        a new one, so that there are never many."""
        for address in list(self._clients):
            self.forget(address, GONE_S)

    def forget(self, address: str, since_s: float = 0.0) -> None:
        """Frees what a peer takes that was not there for so long, unless somebody waits for it."""
        client = self._clients.get(address)
        if client is not None and client.is_idle(since_s):
            del self._clients[address]
            client.rest()

    async def drop(self, address: str) -> None:
        """Closes the client of a peer that is gone for good."""
        if client := self._clients.pop(address, None):
            await client.close()

    async def close(self) -> None:
        """Closes all. Idempotent."""
        for address in list(self._clients):
            await self.drop(address)
        if not self._context.closed:
            self._context.destroy()


def expected(address: str, reply: object, reply_type: type[M], message: Message) -> M:
    """A reply of the type that was asked for.

    Raises:
        MooncakeError: it is the peer's error.
        ProtocolError: it is of another type.
    """
    if isinstance(reply, MooncakeError):
        raise reply
    if not isinstance(reply, reply_type):
        raise ProtocolError(
            f"{address} answered {type(message).__name__} with {type(reply).__name__}, expected {reply_type.__name__}"
        )
    return reply


def late(address: str, message: Message, timeout_s: float) -> DeadlineExceeded:
    """For a call that was not answered."""
    return DeadlineExceeded(f"{address} did not answer {type(message).__name__} within {timeout_s:.3g}s")
