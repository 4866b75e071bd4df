"""Where objects are, for those who read them: each question is answered under a lease, or is a probe. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mooncake_core.store.catalogue import Catalogue
from mooncake_core.store.hot_prefixes import HotPrefixes, head_of
from mooncake_core.store.index import ObjectIndex
from mooncake_core.store.layout import header_bytes
from mooncake_core.store.node_space import NodeSpace
from mooncake_core.store.objects import Counters, PoolObject
from mooncake_core.store.pool_settings import MARGIN_S
from mooncake_core.store.tenants import Account, Tenants, qualified
from mooncake_core.wire.messages.pool import Get, Got, Located
from mooncake_core.wire.messages.usage import HotPrefix


class Lookups:
    """Finds objects in DRAM; what lies in tiers was brought there before."""

    def __init__(
        self,
        nodes: Mapping[str, NodeSpace],
        index: ObjectIndex,
        tenants: Tenants,
        counters: Counters,
        catalogue: Catalogue,
        *,
        term: int,
        read_lease_s: float,
    ) -> None:
        self._nodes = nodes
        self._index = index
        self._tenants = tenants
        self._counters = counters
        self._catalogue = catalogue
        self._term = term
        self._read_lease_s = read_lease_s
        self._hot = HotPrefixes()

    def hottest(self, limit: int) -> list[HotPrefix]:
        """The prefixes that are read most."""
        return self._hot.hottest(limit)

    def get(self, message: Get, now: float, held_s: float = 0.0) -> Got:
        """The answer; `held_s` is how long the question has waited for objects to come to DRAM.

        Raises:
            TenantUnknown: there is no such tenant.
        """
        account = self._tenants.account(message.tenant)
        found = [self._in_dram(key) for key in qualified(message.tenant, message.keys)]
        objects = [None if entry is None else self._locate(entry) for entry in found]
        if message.lease:
            self._use(found, now)
            self._note_read(found, account)
        names = {placement.node for located in objects if located for placement in located.placements}
        return Got(
            term=self._term,
            lease_s=self._read_lease_s if message.lease else 0.0,
            objects=objects,
            segments={name: self._nodes[name].offer.read for name in names},
            held_s=held_s,
        )

    def _in_dram(self, key: str) -> PoolObject | None:
        entry = self._index.readable(key)
        return entry if entry is not None and entry.replicas else None

    def _use(self, found: Sequence[PoolObject | None], now: float) -> None:
        """These objects are going to be read: a lease on each; and they, with their groups, count as used."""
        lease_until = now + self._read_lease_s + MARGIN_S
        groups: dict[str, None] = {}
        for entry in reversed(found):  # so that the tail of a chain counts as used before its head
            if entry is None:
                self._counters.misses += 1
                continue
            self._counters.hits += 1
            if entry.came_from:
                self._counters.came(entry.came_from, entry.size_bytes)
                entry.came_from = ""
            node = self._nodes[next(iter(entry.replicas))]
            node.hits += 1
            node.hit_bytes += entry.size_bytes
            entry.lease_until = max(entry.lease_until, lease_until)
            entry.used_at = now
            if entry.group:
                groups[entry.group] = None
            else:
                self._touch(entry)
        for group in groups:
            for entry in self._index.group(group).values():
                self._touch(entry)

    def _touch(self, entry: PoolObject) -> None:
        if not entry.pin_until:  # else it is not ranked
            for name in entry.replicas:
                self._nodes[name].eviction.touched(entry.key)

    def _locate(self, entry: PoolObject) -> Located:
        return Located(
            key=entry.key,
            allocation_id=entry.allocation_id,
            size_bytes=entry.size_bytes,
            header_bytes=header_bytes(entry.key, entry.parent),
            checksum=entry.checksum,
            placements=self._catalogue.placements(entry),
            tier=entry.came_from,
        )

    def _note_read(self, found: Sequence[PoolObject | None], account: Account) -> None:
        """One question is about one prefix, that of the first object it finds."""
        entries = [entry for entry in found if entry is not None]
        account.hits += len(entries)
        account.misses += len(found) - len(entries)
        if entries:
            size_bytes = sum(entry.size_bytes for entry in entries)
            self._counters.hit_bytes += size_bytes
            account.hit_bytes += size_bytes
            self._hot.read(head_of(entries[0], self._index.get), num_objects=len(entries), size_bytes=size_bytes)
