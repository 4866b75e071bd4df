"""What an endpoint asks others over the control plane: which memory they have registered, whether they are there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from mooncake_core.address import parse_host_port
from mooncake_core.errors import ConfigError, MooncakeError, PeerUnreachable
from mooncake_core.wire.auth import ClusterKey
from mooncake_core.wire.blocking import BlockingClient
from mooncake_core.wire.client import Client, Clients
from mooncake_core.wire.loop_thread import LoopThread
from mooncake_core.wire.messages import Message

M = TypeVar("M")


class Asking:
    """Connections to other endpoints, by their names. Any thread; the loop does the work."""

    def __init__(self, owner: str, key: ClusterKey | None, loop: LoopThread) -> None:
        self._owner = owner
        self._loop = loop
        self._clients = Clients(owner, key)
        self._lock = threading.Lock()
        self._askers: dict[str, BlockingClient] = {}
        self._closed = False

    def ask(self, name: str, message: Message, reply_type: type[M], timeout_s: float) -> M:
        """Waits for the answer.

        Raises:
            ConfigError: the name is none.
            WireError: the endpoint cannot be reached.
            MooncakeError: whatever its handler raised.
        """
        url = _url(name)
        asker = self._asker(url)
        try:
            return asker.call(message, reply_type, timeout_s=timeout_s)
        except PeerUnreachable:
            self._drop(url, asker)
            raise

    def tell(
        self, name: str, message: Message, on_end: Callable[[MooncakeError | None], None], timeout_s: float
    ) -> None:
        """Without waiting; `on_end` is told on the loop's thread how it ended."""
        url = _url(name)
        self._loop.call_soon(lambda: self._clients.get(url).tell(message, on_end, timeout_s=timeout_s))

    def close(self) -> None:
        """Those who wait for an answer get none any more. Idempotent."""
        with self._lock:
            self._closed = True
            askers, self._askers = list(self._askers.values()), {}
        for asker in askers:
            asker.close()

    async def close_wire(self) -> None:
        """On the loop, after `close`: nothing is connected any more."""
        await self._clients.close()

    def _asker(self, url: str) -> BlockingClient:
        with self._lock:
            asker = self._askers.get(url)
        if asker is not None:
            return asker
        self._forget_gone()
        client = self._loop.run(self._client(url))
        with self._lock:
            if self._closed:
                raise PeerUnreachable(f"{self._owner} was closed")
            return self._askers.setdefault(url, BlockingClient(client, self._loop))

    def _forget_gone(self) -> None:
        """What comes back has another address, mostly. Done whenever there is a new one, so that there are never many."""
        with self._lock:
            gone = [(url, asker) for url, asker in self._askers.items() if not asker.is_connected()]
        for url, asker in gone:
            self._drop(url, asker)
            self._loop.call_soon(partial(self._clients.forget, url))

    async def _client(self, url: str) -> Client:
        return self._clients.get(url)

    def _drop(self, url: str, asker: BlockingClient) -> None:
        with self._lock:
            if self._askers.get(url) is not asker:
                return
            del self._askers[url]
        asker.close()


def _url(name: str) -> str:
    try:
        return parse_host_port(name).url
    except ValueError as error:
        raise ConfigError(f"an endpoint's name: {error}") from error
