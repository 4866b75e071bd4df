"""Routes about objects. What is long is done in slices, between which the master does what else there is to do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from mooncake_core.roles.master.http.answers import OBJECT_NOT_FOUND, TEXT, failure, json
from mooncake_core.roles.master.http.state import MasterState
from mooncake_core.store.tenants import DEFAULT_TENANT
from mooncake_core.wire.messages.objects import Describe, Described, KeyList, ListKeys, ObjectDescription
from mooncake_core.wire.messages.pool import RemoveAll, RemovedAll

SLICE: Final = 512
"""Keys looked at in one go."""
IN_TIERS: Final = "local_disk_values"
OTHER_PLACES: Final = ("disk_values", "nof_values")
"""Of upstream's answer: replicas where this pool has none."""


class KeyRoutes:
    """What the pool has, and its end. Each takes ?tenant_id=, else it is about the default tenant."""

    def __init__(self, state: MasterState) -> None:
        self._state = state

    async def query_key(self, request: Request) -> Response:
        """The replicas of one key."""
        (found,) = await self._describe([request.query_params.get("key", "")], _tenant(request))
        if found is None:
            return failure(404, OBJECT_NOT_FOUND, "OBJECT_NOT_FOUND")
        tiered = {IN_TIERS: _in_tiers(found)} if found.tiered_on else {}
        return json({"success": True, "data": _replicas(found), **tiered})

    async def batch_query_keys(self, request: Request) -> Response:
        """The replicas of each of several keys."""
        keys = [key for key in request.query_params.get("keys", "").split(",") if key]
        if not keys:
            return json({"success": False, "error": "No keys provided. Use ?keys=key1,key2,..."}, 400)
        data: dict[str, Any] = {}
        for first in range(0, len(keys), SLICE):
            some = keys[first : first + SLICE]
            described = await self._describe(some, _tenant(request))
            data |= {key: _described(found) for key, found in zip(some, described, strict=True)}
            await self._state.let_go_on()
        return json({"success": True, "data": data})

    async def get_all_keys(self, request: Request) -> Response:
        """One key per line."""
        first = await self._list(0, _tenant(request))  # an unknown tenant must show before the answer begins
        return StreamingResponse(self._lines(first, _tenant(request)), media_type=TEXT)

    async def remove_all(self, request: Request) -> Response:
        """Every object; with ?force=true also leased ones, and puts under way come to nothing."""
        force = request.query_params.get("force", "").lower() in ("1", "true")
        message = RemoveAll(force=force, tenant=_tenant(request))
        removed = await self._state.ask(message, RemovedAll)
        return json({"success": True, "removed_count": removed.removed})

    async def _lines(self, page: KeyList, tenant: str) -> AsyncIterator[bytes]:
        while True:
            yield "".join(f"{key}\n" for key in page.keys).encode()
            if not page.cursor:
                return
            await self._state.let_go_on()
            page = await self._list(page.cursor, tenant)

    async def _list(self, cursor: int, tenant: str) -> KeyList:
        return await self._state.ask(ListKeys(limit=SLICE, cursor=cursor, tenant=tenant), KeyList)

    async def _describe(self, keys: list[str], tenant: str) -> list[ObjectDescription | None]:
        return (await self._state.ask(Describe(keys=keys, tenant=tenant), Described)).objects


def _tenant(request: Request) -> str:
    return request.query_params.get("tenant_id", "") or DEFAULT_TENANT


def _described(found: ObjectDescription | None) -> dict[str, Any]:
    return {
        "ok": found is not None,
        "error": None if found else "OBJECT_NOT_FOUND",
        "values": _replicas(found) if found else None,
        IN_TIERS: _in_tiers(found) if found else None,
        **dict.fromkeys(OTHER_PLACES),
    }


def _replicas(found: ObjectDescription) -> list[dict[str, Any]]:
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


def _in_tiers(found: ObjectDescription) -> list[dict[str, Any]] | None:
    """As upstream's local disk descriptors, one per node that has it in a tier; None without any."""
    return [
        {"client_id": node, "object_size": found.size_bytes, "transport_endpoint": node} for node in found.tiered_on
    ] or None
