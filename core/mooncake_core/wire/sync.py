"""The client for code without an event loop: the command line, threads."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from mooncake_core.wire.auth import ClusterKey
from mooncake_core.wire.client import Client
from mooncake_core.wire.messages import Message

M = TypeVar("M")


class SyncClient:
    """Blocking calls to one server; a loop of its own runs while it waits. Used by one thread at a time."""

    def __init__(self, address: str, *, name: str, key: ClusterKey | None = None, cluster: str = "") -> None:
        """`cluster`: as for Client."""
        self._runner = asyncio.Runner()
        self._client = self._runner.run(_make(address, name, key, cluster))

    def call(self, message: Message, reply_type: type[M], *, timeout_s: float) -> M:
        """As Client.call."""
        return self._runner.run(self._client.call(message, reply_type, timeout_s=timeout_s))

    def close(self) -> None:
        """Frees the socket. Idempotent."""
        self._runner.run(self._client.close())
        self._runner.close()


async def _make(address: str, name: str, key: ClusterKey | None, cluster: str) -> Client:
    return Client(address, name=name, key=key, cluster=cluster)
