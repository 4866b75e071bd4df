"""What the gateway tells others beside the stream of tokens."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from mooncake_core.errors import MooncakeError
from mooncake_core.wire.client import Client
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.envelope import Done

TIMEOUT_S: Final = 5.0
CLOSE_S: Final = 0.5

_log = logging.getLogger(__name__)


class Notices:
    """Sent in the background, also when the request was cancelled."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    def send(self, client: Client, message: Message) -> None:
        """Tells somebody something; deadlines at the other end make up for what is lost."""
        if self._closed:
            return  # the clients may be closed too
        task = asyncio.get_running_loop().create_task(_tell(client, message))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Waits until everything is said, for CLOSE_S at most."""
        self._closed = True
        if not self._running:
            return
        _, late = await asyncio.wait(self._running, timeout=CLOSE_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


async def _tell(client: Client, message: Message) -> None:
    try:
        await client.call(message, Done, timeout_s=TIMEOUT_S)
    except MooncakeError as error:
        _log.info("%s did not take %s: %s", client.address, type(message).__name__, error)
