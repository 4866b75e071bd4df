"""Answers questions about objects and tenants that move no bytes: descriptions, listings, pins, quotas. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mooncake_core.errors import InvalidRequest, ObjectNotFound
from mooncake_core.store.events import QuestionAboutObjects
from mooncake_core.store.index import ObjectIndex
from mooncake_core.store.layout import header_bytes
from mooncake_core.store.node_space import NodeSpace
from mooncake_core.store.objects import PoolObject
from mooncake_core.store.pins import HARD, soft_until
from mooncake_core.store.scans import Listings, Scan, selector
from mooncake_core.store.tenants import Tenants, qualified, split
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.objects import (
    Describe,
    Described,
    KeyList,
    ListKeys,
    ListTenants,
    ObjectDescription,
    Pin,
    Pinned,
    SetQuota,
    TenantList,
    TenantUsage,
)
from mooncake_core.wire.messages.pool import Placement


class Catalogue:
    """Reads the index; changes nothing but pins and quotas."""

    def __init__(
        self,
        index: ObjectIndex,
        nodes: Mapping[str, NodeSpace],
        tenants: Tenants,
        next_id: Callable[[], int],
    ) -> None:
        self._index = index
        self._nodes = nodes
        self._tenants = tenants
        self._listings = Listings(next_id)

    def answer(self, message: QuestionAboutObjects, now: float) -> Message:
        """The answer.

        Raises:
            MooncakeError: the question cannot be answered; says why.
        """
        match message:
            case Describe():
                keys = self._keys(message.tenant, message.keys)
                return Described(objects=[self._describe(key, now) for key in keys])
            case ListKeys():
                return self._list(message, now)
            case Pin():
                until = HARD if message.hard else soft_until(message.soft_s, now)
                keys = self._keys(message.tenant, message.keys)
                return Pinned(refusals=[self._pin(key, until) for key in keys])
            case SetQuota(tenant=tenant, quota_bytes=quota_bytes):
                self._tenants.set_quota(tenant, quota_bytes)
                return Done()
            case ListTenants():
                return TenantList(tenants=self.tenants())

    def tenants(self) -> list[TenantUsage]:
        """Who has how much."""
        return [
            TenantUsage(
                tenant=account.tenant,
                quota_bytes=account.quota_bytes,
                used_bytes=account.used_bytes,
                num_objects=account.num_objects,
                hits=account.hits,
                hit_bytes=account.hit_bytes,
                misses=account.misses,
            )
            for account in self._tenants
        ]

    def placements(self, entry: PoolObject) -> tuple[Placement, ...]:
        """Where an object lies."""
        return tuple(
            [
                Placement(node=name, incarnation=self._nodes[name].incarnation, slot=extent.slot, offset=extent.offset)
                for name, extent in entry.replicas.items()
            ]
        )

    def _keys(self, tenant: str, keys: Sequence[str]) -> Sequence[str]:
        self._tenants.account(tenant)
        return qualified(tenant, keys)

    def _describe(self, key: str, now: float) -> ObjectDescription | None:
        entry = self._index.readable(key)
        if entry is None:
            return None
        return ObjectDescription(
            key=split(key)[1],
            tenant=entry.account.tenant,
            size_bytes=entry.size_bytes,
            checksum=entry.checksum,
            header_bytes=header_bytes(entry.key, entry.parent),
            replicas=self.placements(entry),
            parent=split(entry.parent)[1],
            group=split(entry.group)[1],
            lease_s=max(0.0, entry.lease_until - now),
            idle_s=now - entry.used_at,
            hard_pinned=entry.pin_until == HARD,
            soft_pin_s=0.0 if entry.pin_until == HARD else max(0.0, entry.pin_until - now),
            being_replaced=self._index.being_replaced(key),
            tiered_on=list(entry.tiered),
        )

    def _list(self, message: ListKeys, now: float) -> KeyList:
        if message.limit < 1:
            raise InvalidRequest(f"expected a limit of at least 1, got {message.limit}", param="limit")
        self._tenants.account(message.tenant)
        if message.cursor:
            scan = self._listings.take(message.cursor, now)
        else:
            selects = selector(message.tenant, prefix=message.prefix, pattern=message.pattern)
            scan = Scan(list(self._index.all_readable()), selects)
        found = [entry.key for entry in scan.step(message.limit) if self._index.readable(entry.key) is entry]
        return KeyList(keys=[split(key)[1] for key in found], cursor=self._listings.keep(scan, now))

    def _pin(self, key: str, until: float) -> str:
        entry = self._index.readable(key)
        if entry is None:
            return ObjectNotFound.code
        self._index.pin(entry, until)
        return ""
