"""What a client asks the master about objects, and has it do to them: no bytes move."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from mooncake_core.store.carrying import Asker
from mooncake_core.store.tenants import DEFAULT_TENANT
from mooncake_core.wire.messages.objects import (
    Describe,
    Described,
    KeyList,
    ListKeys,
    ObjectDescription,
    Pin,
    Pinned,
    RemoveMatching,
    RemoveReplicas,
)
from mooncake_core.wire.messages.pool import Exists, ExistsReply, Remove, RemoveAll, Removed, RemovedAll
from mooncake_core.wire.messages.tiering import Prefetch, Prefetching


class Asking:
    """Questions of one tenant. An unreachable master is an exception; what is not there is a result."""

    def __init__(self, master: Asker, *, tenant: str = DEFAULT_TENANT) -> None:
        self._master = master
        self._tenant = tenant

    async def exists(self, keys: Sequence[str], *, timeout_s: float) -> list[bool]:
        """Which objects can be read now. Takes no lease."""
        message = Exists(keys=list(keys), tenant=self._tenant)
        return (await self._master.call(message, ExistsReply, timeout_s=timeout_s)).present

    async def describe(self, keys: Sequence[str], *, timeout_s: float) -> list[ObjectDescription | None]:
        """What is known of objects, None for those that cannot be read. Takes no lease."""
        message = Describe(keys=list(keys), tenant=self._tenant)
        return (await self._master.call(message, Described, timeout_s=timeout_s)).objects

    async def get_size(self, key: str, *, timeout_s: float) -> int | None:
        """Bytes of an object, None if it cannot be read. Takes no lease."""
        (found,) = await self.describe([key], timeout_s=timeout_s)
        return None if found is None else found.size_bytes

    async def list_keys(self, *, timeout_s: float, prefix: str = "", pattern: str = "") -> AsyncIterator[list[str]]:
        """Keys that begin so and have the regular expression (RE2) in them, page by page: each object that is there all the
        time exactly once. `timeout_s` is for each page.

        Raises:
            InvalidRequest: the pattern is none.
        """
        cursor = 0
        while True:
            message = ListKeys(prefix=prefix, pattern=pattern, cursor=cursor, tenant=self._tenant)
            page = await self._master.call(message, KeyList, timeout_s=timeout_s)
            yield page.keys
            cursor = page.cursor
            if not cursor:
                return

    async def pin(self, keys: Sequence[str], *, timeout_s: float, hard: bool = False, soft_s: float = 0.0) -> list[str]:
        """Pins objects like this and no other way, or without arguments not at all; one error code each, empty for success.
        A master that starts again knows of no pins."""
        message = Pin(keys=list(keys), hard=hard, soft_s=soft_s, tenant=self._tenant)
        return (await self._master.call(message, Pinned, timeout_s=timeout_s)).refusals

    async def prefetch(self, keys: Sequence[str], *, timeout_s: float) -> int:
        """Brings objects that are only in a tier (SSD, object storage) to DRAM, without reading them; how many of them."""
        message = Prefetch(keys=list(keys), tenant=self._tenant)
        return (await self._master.call(message, Prefetching, timeout_s=timeout_s)).num_objects

    async def remove(self, keys: Sequence[str], *, timeout_s: float, force: bool = False) -> list[str]:
        """Removes objects; one error code each, empty for success."""
        message = Remove(keys=list(keys), force=force, tenant=self._tenant)
        return (await self._master.call(message, Removed, timeout_s=timeout_s)).refusals

    async def remove_from(self, node: str, keys: Sequence[str], *, timeout_s: float) -> list[str]:
        """Removes what a node has of objects; one error code each, empty for success. One that lies nowhere else goes."""
        message = RemoveReplicas(keys=list(keys), node=node, tenant=self._tenant)
        return (await self._master.call(message, Removed, timeout_s=timeout_s)).refusals

    async def remove_matching(self, pattern: str, *, timeout_s: float, force: bool = False) -> RemovedAll:
        """Removes the objects in whose keys the regular expression (RE2) is found; with `force` also leased ones.

        Raises:
            InvalidRequest: the pattern is empty, or none.
        """
        message = RemoveMatching(pattern=pattern, force=force, tenant=self._tenant)
        return await self._master.call(message, RemovedAll, timeout_s=timeout_s)

    async def remove_all(self, *, timeout_s: float, force: bool = False) -> RemovedAll:
        """Removes every object of the tenant; with `force` also leased ones, and puts under way come to nothing."""
        message = RemoveAll(force=force, tenant=self._tenant)
        return await self._master.call(message, RemovedAll, timeout_s=timeout_s)
