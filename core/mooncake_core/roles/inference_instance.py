"""An instance through all roles that it has, one after the other: its engine and its memory stay."""

from __future__ import annotations

from mooncake_core.conductor.role_planning import Role
from mooncake_core.roles import decode, prefill
from mooncake_core.roles.context import RoleContext
from mooncake_core.roles.instance import Instance


async def run(context: RoleContext) -> None:
    """Serves until told to stop."""
    instance = await Instance.load(context)
    role: Role | None = "prefill" if context.spec.role == "prefill" else "decode"
    try:
        while role is not None:
            role = await (prefill if role == "prefill" else decode).serve(instance)
    finally:
        await instance.close()
