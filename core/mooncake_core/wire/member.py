"""Being a member: joins the master, sends heartbeats, joins again when the master forgot or was replaced."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from mooncake_core.errors import (
    AuthenticationFailed,
    ConfigError,
    MemberExists,
    MemberUnknown,
    MooncakeError,
    VersionMismatch,
)
from mooncake_core.wire.client import Client
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.membership import Heartbeat, InstanceLoad, Join, Joined, Leave

FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 0.5
"""The time without a master counts against the time in which a new one is to know all again."""
CALL_TIMEOUT_S: Final = 3.0
HOPELESS: Final = (AuthenticationFailed, VersionMismatch, ConfigError, MemberExists)

_log = logging.getLogger(__name__)


class Member:
    """One process's membership. `join` makes the message anew each time, since offers change."""

    def __init__(
        self,
        client: Client,
        *,
        join: Callable[[], Join],
        load: Callable[[], InstanceLoad | None],
        on_joined: Callable[[Joined], None],
    ) -> None:
        self._client = client
        self._join = join
        self._load = load
        self._on_joined = on_joined
        self._joined: Joined | None = None
        self._draining = asyncio.Event()

    async def run(self) -> None:
        """Stays a member until cancelled.

        Raises:
            AuthenticationFailed, VersionMismatch, ConfigError, MemberExists: it can never become one; says why.
        """
        while True:
            joined = await self._join_master()
            await self._beat(joined)

    def drain(self) -> None:
        """Tells the master, with the next heartbeat and at once, that this member is to get no new work."""
        self._draining.set()

    async def leave(self) -> None:
        """Says good-bye; a master that does not listen finds out by itself."""
        if self._joined is None:
            return
        join = self._join()
        with contextlib.suppress(MooncakeError):
            await self._client.call(Leave(name=join.name, incarnation=join.incarnation), Done, timeout_s=0.5)

    async def _join_master(self) -> Joined:
        delay = FIRST_DELAY_S
        while True:
            try:
                self._joined = joined = await self._client.call(self._join(), Joined, timeout_s=CALL_TIMEOUT_S)
            except HOPELESS:
                raise
            except MooncakeError as error:
                is_long = delay < LONGEST_DELAY_S <= 2 * delay  # said once
                _log.log(logging.INFO if is_long else logging.DEBUG, "waiting for the master: %s", error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, LONGEST_DELAY_S)
            else:
                self._on_joined(joined)
                return joined

    async def _beat(self, joined: Joined) -> None:
        """Heartbeats until the master does not know this member any more."""
        join = self._join()
        drains = False
        while True:
            await self._next_beat(joined.heartbeat_interval_s, drains)
            drains = self._draining.is_set()
            beat = Heartbeat(
                name=join.name, incarnation=join.incarnation, term=joined.term, load=self._load(), draining=drains
            )
            try:
                await self._client.call(beat, Done, timeout_s=CALL_TIMEOUT_S)
            except MemberUnknown:
                return
            except MooncakeError as error:
                _log.warning("the master does not answer: %s", error)
                return

    async def _next_beat(self, interval_s: float, drains: bool) -> None:
        """Waits for the interval; that this member drains is said without waiting, once."""
        if drains:
            await asyncio.sleep(interval_s)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await self._draining.wait()
