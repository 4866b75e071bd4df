"""Gateways that the master does not hear of any more, and what runs for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from mooncake_core.address import parse_host_port
from mooncake_core.roles.tasks import Tasks
from mooncake_core.wire.messages.membership import Join

GRACE_S: Final = 30.0
"""Beyond the lease. A gateway that is stopped or busy for so long gets its streams back: their tokens wait in its sockets."""
LOOK_S: Final = 1.0
"""How often it is looked for, and how long it may take to be found."""

_log = logging.getLogger(__name__)


class SilentGateways:
    """Keeps the requests of a silent gateway until it is back, is dead for certain, or the grace is over."""

    def __init__(self, on_gone: Callable[[str], None], *, grace_s: float = GRACE_S, look_s: float = LOOK_S) -> None:
        """`on_gone` is told the name of a gateway that nobody need wait for."""
        self._on_gone = on_gone
        self._grace_s = grace_s
        self._look_s = look_s
        self._incarnations: dict[str, int] = {}
        self._tasks = Tasks()

    def silent(self, join: Join) -> None:
        """Its lease has ended without a word."""
        self._incarnations[join.name] = join.incarnation
        self._tasks.start(self._watch(join))

    def joined(self, join: Join) -> None:
        """A gateway has joined: the silent one, or another process in its place."""
        if self._incarnations.pop(join.name, join.incarnation) != join.incarnation:
            self._on_gone(join.name)

    async def close(self) -> None:
        """Looks for nobody any more."""
        await self._tasks.close()

    async def _watch(self, join: Join) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._grace_s
        while loop.time() < deadline and await self._may_live(join):
            await asyncio.sleep(self._look_s)
            if self._incarnations.get(join.name) != join.incarnation:
                return
        if self._incarnations.get(join.name) == join.incarnation:
            del self._incarnations[join.name]
            _log.info("the requests of gateway %s are ended: it does not come back", join.name)
            self._on_gone(join.name)

    async def _may_live(self, join: Join) -> bool:
        """Whether its port is still open: the kernel keeps it for a process that is only stopped, and closes that of a dead
        one. A host that does not answer at all says nothing."""
        if not join.control_address:
            return False
        address = parse_host_port(join.control_address)
        try:
            async with asyncio.timeout(self._look_s):
                _, writer = await asyncio.open_connection(address.host, address.port)
        except ConnectionRefusedError:
            return False
        except OSError:  # a timeout is one
            return True
        writer.close()
        return True
