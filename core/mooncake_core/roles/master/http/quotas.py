"""Routes about tenants' quotas."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from mooncake_core.errors import InvalidRequest
from mooncake_core.roles.master.http.answers import OBJECT_NOT_FOUND, failure, json
from mooncake_core.roles.master.http.state import MasterState
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.objects import ListTenants, SetQuota, TenantList, TenantUsage


class QuotaRequest(Struct, frozen=True, kw_only=True):
    """The body of a PUT."""

    requested_quota_bytes: int


class QuotaRoutes:
    """Who may hold how much, and does. What is set here holds until the master ends."""

    def __init__(self, state: MasterState) -> None:
        self._state = state

    async def answer(self, request: Request) -> Response:
        """All tenants, or that of ?tenant_id=; PUT and DELETE set and lift its quota."""
        name = request.query_params.get("tenant_id", "")
        if request.method == "GET" and not name:
            return json({"success": True, "data": [_snapshot(tenant) for tenant in await self._tenants()]})
        if not name:
            raise InvalidRequest("Missing or invalid tenant_id")
        if request.method == "PUT":
            return await self._put(name, await request.body())
        tenant = next((tenant for tenant in await self._tenants() if tenant.tenant == name), None)
        if tenant is None:
            return failure(404, OBJECT_NOT_FOUND, "OBJECT_NOT_FOUND")
        if request.method == "GET":
            return json({"success": True, "data": _snapshot(tenant)})
        await self._state.ask(SetQuota(tenant=name, quota_bytes=None), Done)
        return json({"success": True, "data": None})

    async def _put(self, name: str, body: bytes) -> Response:
        try:
            wanted = msgspec.json.decode(body, type=QuotaRequest).requested_quota_bytes
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f'expected a body like {{"requested_quota_bytes": 1048576}}: {error}') from error
        await self._state.ask(SetQuota(tenant=name, quota_bytes=wanted), Done)
        (tenant,) = [tenant for tenant in await self._tenants() if tenant.tenant == name]
        return json({"success": True, "data": _snapshot(tenant)})

    async def _tenants(self) -> list[TenantUsage]:
        return (await self._state.ask(ListTenants(), TenantList)).tenants


def _snapshot(tenant: TenantUsage) -> dict[str, Any]:
    quota = tenant.quota_bytes
    over = quota is not None and tenant.used_bytes > quota
    return {
        "tenant_id": tenant.tenant,
        "requested_quota_bytes": quota,
        "effective_quota_bytes": quota,
        "charged_bytes": tenant.used_bytes,
        "admission_closed": quota is not None and tenant.used_bytes >= quota,
        "over_quota": over,
        "has_explicit_policy": quota is not None,
    }
