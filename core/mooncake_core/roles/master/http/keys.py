"""Routes about objects. Long lists are made in slices, between which the master does what else there is to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from mooncake_core.roles.master.http.answers import OBJECT_NOT_FOUND, TEXT, failure, json
from mooncake_core.roles.master.http.state import MasterState
from mooncake_core.wire.messages.pool import Remove, RemoveAll, Removed, RemovedAll
from mooncake_core.wire.messages.usage import ObjectReport

SLICE: Final = 512
"""Keys looked at in one go."""
OTHER_TIERS: Final = ("disk_values", "local_disk_values", "nof_values")
"""Of upstream's answer: replicas that are not in memory."""


class KeyRoutes:
    """What the pool has, and its end."""

    def __init__(self, state: MasterState) -> None:
        self._state = state

    async def query_key(self, request: Request) -> Response:
        """The replicas of one key."""
        found = self._state.object_report(request.query_params.get("key", ""))
        if found is None:
            return failure(404, OBJECT_NOT_FOUND, "OBJECT_NOT_FOUND")
        return json({"success": True, "data": _replicas(found)})

    async def batch_query_keys(self, request: Request) -> Response:
        """The replicas of each of several keys."""
        keys = [key for key in request.query_params.get("keys", "").split(",") if key]
        if not keys:
            return json({"success": False, "error": "No keys provided. Use ?keys=key1,key2,..."}, 400)
        data: dict[str, Any] = {}
        for first in range(0, len(keys), SLICE):
            data |= {key: self._described(key) for key in keys[first : first + SLICE]}
            await asyncio.sleep(0)
        return json({"success": True, "data": data})

    async def get_all_keys(self, request: Request) -> Response:
        """One key per line."""
        return StreamingResponse(self._lines(), media_type=TEXT)

    async def remove_all(self, request: Request) -> Response:
        """Every object; with ?force=true also leased ones, and puts under way come to nothing."""
        force = request.query_params.get("force", "").lower() in ("1", "true")
        keys, removed = self._state.pool.pool.keys(), 0
        for first in range(0, len(keys), SLICE):
            answer = await self._state.ask(Remove(keys=keys[first : first + SLICE], force=force), Removed)
            removed += answer.refusals.count("")
            await asyncio.sleep(0)
        # What came meanwhile, and what is being written.
        rest = await self._state.ask(RemoveAll(force=force), RemovedAll)
        return json({"success": True, "removed_count": removed + rest.removed})

    def _described(self, key: str) -> dict[str, Any]:
        found = self._state.object_report(key)
        return {
            "ok": found is not None,
            "error": None if found else "OBJECT_NOT_FOUND",
            "values": _replicas(found) if found else None,
            **dict.fromkeys(OTHER_TIERS),
        }

    async def _lines(self) -> AsyncIterator[bytes]:
        keys = self._state.pool.pool.keys()
        for first in range(0, len(keys), SLICE):
            there = (key for key in keys[first : first + SLICE] if self._state.is_readable(key))
            yield "".join(f"{key}\n" for key in there).encode()
            await asyncio.sleep(0)


def _replicas(found: ObjectReport) -> list[dict[str, Any]]:
    """As upstream's buffer descriptors: an address is one within the node's segment."""
    return [
        {
            "size_": found.size_bytes,
            "buffer_address_": replica.offset,
            "protocol_": "tcp",
            "transport_endpoint_": replica.node,
        }
        for replica in found.replicas
    ]
