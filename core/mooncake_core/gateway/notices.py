"""What the gateway tells others beside the stream of tokens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from mooncake_core.errors import MooncakeError
from mooncake_core.wire.client import Client
from mooncake_core.wire.messages import Message

TIMEOUT_S: Final = 5.0
CLOSE_S: Final = 0.5

_log = logging.getLogger(__name__)


class Notices:
    """Sent in the background, also when the request was cancelled."""

    def __init__(self) -> None:
        self._under_way = 0
        self._ended = asyncio.Event()
        self._closed = False

    def send(self, client: Client, message: Message) -> None:
        """Tells somebody something; deadlines at the other end make up for what is lost."""
        if self._closed:
            return  # the clients may be closed too
        self._under_way += 1

        def on_end(error: MooncakeError | None) -> None:
            self._under_way -= 1
            self._ended.set()
            if error is not None:
                _log.info("%s did not take %s: %s", client.address, type(message).__name__, error)

        client.tell(message, on_end, timeout_s=TIMEOUT_S)

    async def close(self) -> None:
        """Waits until everything is said, for CLOSE_S at most."""
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                while self._under_way:
                    self._ended.clear()
                    await self._ended.wait()
