"""Answers requests: one ROUTER socket, one handler per message type, and a reply to every request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, cast

import zmq
from msgspec import Struct, structs

from mooncake_core.address import HostPort
from mooncake_core.errors import (
    DeadlineExceeded,
    MooncakeError,
    ProtocolError,
    RequestCancelled,
    WireError,
    to_wire,
)
from mooncake_core.wire.auth import ClusterKey
from mooncake_core.wire.channel import Channel, limit
from mooncake_core.wire.door import Door
from mooncake_core.wire.envelope import (
    Envelope,
    Hello,
    Kind,
    bundles,
    decode_head,
    decode_hello,
    encode_part,
    pack,
    unpack,
)
from mooncake_core.wire.messages import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, Message, decode, encode
from mooncake_core.wire.messages.envelope import Done, Failure, Ping
from mooncake_core.wire.versions import agree

ZAP_ADDRESS: Final = "inproc://zeromq.zap.01"
FEW_PEERS: Final = 256
"""Need not be looked after."""

_log = logging.getLogger(__name__)


class Call:
    """Who asks, and until when."""

    __slots__ = ("deadline", "peer", "reply")

    def __init__(self, peer: str, deadline: float, reply: Callable[[Message], None] = lambda message: None) -> None:
        self.peer = peer
        self.deadline = deadline
        """time.monotonic() after which nobody waits for the answer."""
        self.reply = reply
        """Sends one of several replies, before the last one, which the handler returns: another, or Done."""

    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.deadline - time.monotonic())


Handler = Callable[[Any, Call], Coroutine[Any, Any, Message] | Message]
"""Answers one request: at once, or, as a coroutine, later. Then it is cancelled when the asker cancels, the deadline
passes, or the server closes."""


class Server:
    """Serves handlers at one address.

    A handler's error goes to whoever asked; an unexpected one is logged as well.
    """

    def __init__(
        self,
        name: str,
        handlers: Mapping[type, Handler],
        *,
        key: ClusterKey | None = None,
        versions: tuple[int, int] = (OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION),
        door: bool = False,
        cluster: str = "",
    ) -> None:
        """`door`: clients that block may come by door.py, unless there is a key. `cluster`: of which this is the master."""
        self._handlers: dict[type, Handler] = {Ping: _pong, **handlers}
        self._key = key
        self._hello = Hello(name=name, oldest=versions[0], newest=versions[1], cluster=cluster)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._channel: Channel | None = None
        self._zap: Channel | None = None
        self._door = Door(self._hear, self._left) if door and key is None else None
        self._peers: dict[bytes, str] = {}
        self._most_peers = FEW_PEERS
        """When there are more, those that are gone are looked for."""
        self._outgoing: dict[bytes, list[bytes]] = {}
        self._running: dict[tuple[bytes, int], asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop

    async def start(self, address: HostPort) -> HostPort:
        """Binds; port 0 takes a free one. Returns the real address.

        Raises:
            WireError: the address cannot be bound; says which, why, and what to do.
        """
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        socket = self._context.socket(zmq.ROUTER)
        limit(socket)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if self._key:
            self._demand_key(socket, self._key)
        try:
            socket.bind(f"tcp://{address.host}:{address.port or '*'}")
        except zmq.ZMQError as error:
            socket.close()
            raise WireError(f"cannot listen on {address}: {error.strerror}; {_bind_hint(error, address)}") from error
        bound = cast(bytes, socket.getsockopt(zmq.LAST_ENDPOINT)).decode()
        if self._door is not None:
            self._hello = structs.replace(self._hello, door=await self._door.open(address.host))
        self._channel = Channel(socket, self._on_frames)
        return HostPort(address.host, int(bound.rpartition(":")[2]))

    async def close(self) -> None:
        """Tells whoever waits for an answer that there will be none, and frees everything. Idempotent."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._flush()
        if self._door is not None:
            await self._door.close()
        for channel in (self._channel, self._zap):
            if channel:
                channel.close()
        if self._context and not self._context.closed:
            self._context.destroy()

    def _demand_key(self, socket: zmq.Socket[bytes], key: ClusterKey) -> None:
        """Admits only the cluster's client key (ZAP, RFC 27)."""
        assert self._context is not None
        zap = self._context.socket(zmq.REP)
        zap.bind(ZAP_ADDRESS)
        self._zap = Channel(zap, lambda frames: self._admit(frames, key))
        socket.curve_server = True
        socket.curve_publickey = key.server_public.encode()
        socket.curve_secretkey = key.server_secret.encode()
        socket.zap_domain = b"mooncake"

    def _admit(self, frames: list[bytes], key: ClusterKey) -> None:
        from zmq.utils import z85

        version, request_id, *_, mechanism, credential = frames
        admitted = mechanism == b"CURVE" and z85.encode(credential) == key.client_public.encode()
        status = (b"200", b"OK") if admitted else (b"400", b"not a key of this cluster")
        assert self._zap is not None
        self._zap.send([version, request_id, *status, b"", b""])

    def _on_frames(self, frames: list[bytes]) -> None:
        identity, *rest = frames
        try:
            envelopes = unpack(rest)
        except MooncakeError as error:
            self._refuse(identity, 0, error)
        else:
            self._hear(identity, envelopes)

    def _hear(self, identity: bytes, envelopes: Sequence[Envelope]) -> None:
        number = 0
        try:
            for envelope in envelopes:
                number = envelope.number
                self._on_envelope(identity, envelope)
        except MooncakeError as error:
            self._refuse(identity, number, error)

    def _refuse(self, identity: bytes, number: int, error: MooncakeError) -> None:
        _log.warning("refused a message: %s", error)
        self._send(identity, Kind.LAST, number, _failure(error))

    def _on_envelope(self, identity: bytes, envelope: Envelope) -> None:
        if envelope.kind is Kind.HELLO:
            theirs = decode_hello(envelope.head)
            agree(self._hello, theirs)
            self._peers[identity] = theirs.name
            if len(self._peers) > self._most_peers:
                self._forget_gone()
            self._enqueue(identity, pack(Kind.WELCOME, envelope.number, encode_part(self._hello)))
        elif envelope.kind is Kind.REQUEST:
            self._start(identity, envelope)
        elif envelope.kind is Kind.CANCEL:
            if task := self._running.get((identity, envelope.number)):
                task.cancel()
        else:
            raise ProtocolError(f"a server expects hello, request or cancel, got {envelope.kind.name.lower()}")

    def _start(self, identity: bytes, envelope: Envelope) -> None:
        peer = self._peers.get(identity)
        if peer is None:
            raise ProtocolError("expected a hello before the first request")
        message = decode(envelope.body)
        handler = self._handlers.get(type(message))
        if handler is None:
            raise ProtocolError(f"{self._hello.name} does not answer {type(message).__name__}")
        number = (identity, envelope.number)
        call = Call(
            peer,
            time.monotonic() + decode_head(envelope.head).timeout_s,
            lambda reply: self._send(identity, Kind.REPLY, envelope.number, reply),
        )
        try:
            answer = handler(message, call)
        except Exception as error:
            self._send(identity, Kind.LAST, envelope.number, self._failed(message, call, error))
            return
        if isinstance(answer, Struct):
            self._send(identity, Kind.LAST, envelope.number, answer)
            return
        coroutine = answer
        task = self._running[number] = self._loop.create_task(self._finish(number, coroutine, message, call))

        def ended(_: object) -> None:
            del self._running[number]
            coroutine.close()  # a task that is cancelled at once never awaits it

        task.add_done_callback(ended)

    async def _finish(
        self, number: tuple[bytes, int], answer: Coroutine[Any, Any, Message], message: Message, call: Call
    ) -> None:
        reply: Message
        task = self._running[number]
        late = False

        def end() -> None:
            nonlocal late
            late = True
            task.cancel()

        timer = self._loop.call_later(call.remaining_s(), end)  # asyncio.timeout costs more
        try:
            reply = await answer
        except asyncio.CancelledError:
            reply = _failure(_too_late(message) if late else self._cancelled(message))
        except Exception as error:
            reply = self._failed(message, call, error)
        finally:
            timer.cancel()
        self._send(number[0], Kind.LAST, number[1], reply)

    def _cancelled(self, message: Message) -> RequestCancelled:
        return RequestCancelled(f"{type(message).__name__} was cancelled, or {self._hello.name} is shutting down")

    def _failed(self, message: Message, call: Call, error: Exception) -> Failure:
        if isinstance(error, MooncakeError):
            return _failure(error)
        if isinstance(error, TimeoutError):
            return _failure(_too_late(message))
        _log.error("%s from %s failed", type(message).__name__, call.peer, exc_info=error)
        return _failure(error)

    def _send(self, identity: bytes, kind: Kind, number: int, message: Message) -> None:
        self._enqueue(identity, pack(kind, number, b"", encode(message)))

    def _enqueue(self, identity: bytes, envelope: bytes) -> None:
        """What is said to one peer in one turn of the event loop leaves together; at the door, at once."""
        if self._door is not None and self._door.send(identity, envelope):
            return
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        waiting = self._outgoing.setdefault(identity, [])
        waiting.append(envelope)

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, {}
        for identity, envelopes in outgoing.items():
            for bundle in bundles(envelopes):
                self._send_bundle(identity, bundle)

    def _send_bundle(self, identity: bytes, bundle: bytes) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send([identity, bundle])
        except zmq.ZMQError as error:
            self._gone(identity, error)

    def _forget_gone(self) -> None:
        """Nothing tells that a peer went without being owed an answer; but what is said to it cannot be sent. A second
        welcome changes nothing for those that are there."""
        assert self._channel is not None  # a hello came by it
        welcome = pack(Kind.WELCOME, 0, encode_part(self._hello))
        for identity in list(self._peers):
            if self._door is not None and self._door.has(identity):
                continue
            try:
                self._channel.send([identity, welcome])
            except zmq.ZMQError:
                del self._peers[identity]
        self._most_peers = max(FEW_PEERS, 2 * len(self._peers))

    def _gone(self, identity: bytes, error: zmq.ZMQError) -> None:
        """The peer has vanished or stopped reading: nobody waits for its answers any more."""
        _log.info("%s is gone: %s", self._peers.get(identity, "a peer"), error.strerror)
        self._left(identity)

    def _left(self, identity: bytes) -> None:
        self._peers.pop(identity, None)
        for (owner, _), task in list(self._running.items()):
            if owner == identity:
                task.cancel()


def _pong(message: Ping, call: Call) -> Done:
    return Done()


def _too_late(message: Message) -> DeadlineExceeded:
    return DeadlineExceeded(f"{type(message).__name__} took too long")


def _failure(error: BaseException) -> Failure:
    code, message, detail = to_wire(error)
    return Failure(code=code, message=message, detail=detail)


def _bind_hint(error: zmq.ZMQError, address: HostPort) -> str:
    if error.errno == zmq.EADDRINUSE:
        return f"another process uses port {address.port}: stop it, or choose another port (0 takes a free one)"
    return "check the host in the configuration"
