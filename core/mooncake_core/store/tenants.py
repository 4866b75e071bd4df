"""Tenants: whose a key is, how many bytes each of them holds, and how many it may. Pure.

A tenant's key stands in the pool, and in the object's header, as `NUL tenant NUL key`; that of the default tenant as it is. A
key that begins with NUL is nobody's: so no tenant can name another one's object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mooncake_core.errors import InvalidRequest, TenantUnknown

DEFAULT_TENANT: Final = "default"
MAX_TENANT_CHARACTERS: Final = 64
_NUL: Final = "\0"
_NOBODYS: Final = ""
"""No object has an empty key: what is mapped to it can neither be put nor found."""


def prefix_of(tenant: str) -> str:
    """What a tenant's keys begin with in the pool."""
    return "" if tenant == DEFAULT_TENANT else f"{_NUL}{tenant}{_NUL}"


def qualified(tenant: str, keys: Sequence[str]) -> Sequence[str]:
    """A tenant's keys as they stand in the pool. An empty one stays empty: so do parents that there are not."""
    if tenant != DEFAULT_TENANT:
        prefix = prefix_of(tenant)
        return [prefix + key if key else _NOBODYS for key in keys]
    if _NUL not in "".join(keys):  # quicker than to look at each
        return keys
    return [_NOBODYS if is_of_a_named_tenant(key) else key for key in keys]


def is_of_a_named_tenant(key: str) -> bool:
    """Whether a key of the pool is another tenant's than the default one's."""
    return key.startswith(_NUL)


def split(key: str) -> tuple[str, str]:
    """Whose key it is, and how its tenant calls it."""
    if not is_of_a_named_tenant(key):
        return DEFAULT_TENANT, key
    tenant, _, own = key[1:].partition(_NUL)
    return tenant, own


@dataclass(slots=True)
class Account:
    """What a tenant holds: the extents of its objects on all nodes, those being written included."""

    tenant: str
    quota_bytes: int | None = None
    used_bytes: int = 0
    num_objects: int = 0
    """That can be read."""
    hits: int = 0
    hit_bytes: int = 0
    misses: int = 0
    """Of its own reads, as the pool counts them."""

    def has_room(self, num_bytes: int) -> bool:
        """Whether the quota leaves room for so many more."""
        return self.quota_bytes is None or self.used_bytes + num_bytes <= self.quota_bytes


class Tenants:
    """The accounts by tenant. Where none is configured, anybody may be one."""

    def __init__(self, quotas: Mapping[str, int | None]) -> None:
        """`quotas` in bytes, None for none. The default tenant is always there."""
        self._accounts = {name: Account(name, quota) for name, quota in ({DEFAULT_TENANT: None} | dict(quotas)).items()}
        self._known = set(self._accounts) if quotas else None

    def account(self, tenant: str) -> Account:
        """Of a tenant that asks.

        Raises:
            TenantUnknown: others are configured.
            InvalidRequest: there can be no such tenant.
        """
        account = self._accounts.get(tenant)
        if account is not None and (self._known is None or tenant in self._known):
            return account
        _check(tenant)
        if self._known is not None:
            known = ", ".join(sorted(self._known))
            raise TenantUnknown(f"expected one of the tenants {known}, got {tenant}: add it to pool.tenants")
        return self._made(tenant)

    def owner_of(self, key: str) -> Account:
        """Of whoever put an object that a node reports; that tenant need not be known any more."""
        tenant, _ = split(key)
        return self._accounts.get(tenant) or self._made(tenant)

    def set_quota(self, tenant: str, quota_bytes: int | None) -> None:
        """From now on; a tenant that was not known is.

        Raises:
            InvalidRequest: there can be no such tenant, or quota.
        """
        _check(tenant)
        if quota_bytes is not None and quota_bytes < 0:
            raise InvalidRequest(f"expected a quota of at least 0 bytes, got {quota_bytes}", param="quota_bytes")
        (self._accounts.get(tenant) or self._made(tenant)).quota_bytes = quota_bytes
        if self._known is not None:
            self._known.add(tenant)

    def __iter__(self) -> Iterator[Account]:
        """The default tenant's first."""
        return iter(self._accounts.values())

    def _made(self, tenant: str) -> Account:
        return self._accounts.setdefault(tenant, Account(tenant))


def _check(tenant: str) -> None:
    if not 0 < len(tenant) <= MAX_TENANT_CHARACTERS or _NUL in tenant:
        raise InvalidRequest(
            f"expected a tenant's name of 1 to {MAX_TENANT_CHARACTERS} characters without NUL, got {tenant!r}",
            param="tenant",
        )
