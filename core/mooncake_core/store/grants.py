"""Who may write where, and what becomes of it: a put is granted space, then committed or taken back. Pure.

Each key has one writer at a time. Space that a writer may still write to is not given out again: see docs/decisions/0006.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mooncake_core.errors import InvalidRequest, NoSpace, ObjectBusy, ObjectExists, QuotaExceeded, StaleAllocation
from mooncake_core.store.catalogue import Catalogue
from mooncake_core.store.evicting import Evicting
from mooncake_core.store.index import ObjectIndex
from mooncake_core.store.layout import extent_bytes
from mooncake_core.store.node_space import NodeSpace
from mooncake_core.store.objects import Counters, PoolObject
from mooncake_core.store.pins import HARD, soft_until
from mooncake_core.store.placement import Order, Placing
from mooncake_core.store.pool_settings import MARGIN_S
from mooncake_core.store.replicas import Replicas
from mooncake_core.store.tenants import Account, Tenants, prefix_of, qualified
from mooncake_core.wire.messages.pool import Commit, Grant, NewObject, PutEnd, PutEnded, PutStart, PutStarted

ROUND_TRIP_S: Final = 0.05
"""What a put that was refused for want of space may wait for a node's answer."""


@dataclass(slots=True)
class _Batch:
    """What is common to the objects of one put."""

    message: PutStart
    account: Account
    placing: Placing
    soft_pin_until: float | None
    """None: not said."""


class Grants:
    """Puts from the question for space to the commit, and their deadlines."""

    def __init__(
        self,
        nodes: Mapping[str, NodeSpace],
        index: ObjectIndex,
        tenants: Tenants,
        counters: Counters,
        catalogue: Catalogue,
        evicting: Evicting,
        *,
        term: int,
        next_id: Callable[[], int],
        order: Order,
        writer_deadline_s: float,
        drop: Callable[[PoolObject, int, float], None],
        committed: Callable[[PoolObject, float], None],
    ) -> None:
        """`drop` takes what an object replaces from everywhere, with the id that it must be older than."""
        self._nodes = nodes
        self._index = index
        self._tenants = tenants
        self._counters = counters
        self._catalogue = catalogue
        self._evicting = evicting
        self._term = term
        self._next_id = next_id
        self._order = order
        self._writer_deadline_s = writer_deadline_s
        self._drop = drop
        self._committed = committed
        self._deadlines: deque[tuple[float, int]] = deque()
        """(when, allocation id) of each put that was begun, in that order: all have the same time."""

    def start(self, message: PutStart, now: float) -> PutStarted:
        """Space for what may be put.

        Raises:
            TenantUnknown: there is no such tenant.
            InvalidRequest: no put can be like this.
        """
        batch = self._batch(message, now)
        keys = qualified(message.tenant, [wanted.key for wanted in message.objects])
        parents = qualified(message.tenant, [wanted.parent for wanted in message.objects])
        grants = [
            self._grant(key, parent, wanted, batch, now)
            for key, parent, wanted in zip(keys, parents, message.objects, strict=True)
        ]
        names = {placement.node for grant in grants for placement in grant.placements}
        wanting = batch.placing.wanting
        for name in names | wanting.keys():
            self._evicting.make_room(self._nodes[name], now, wanting.get(name, 0))
        refused = any(grant.refusal == NoSpace.code for grant in grants)
        retry_after_s = self._retry_after_s(now) if refused else None
        return PutStarted(
            term=self._term,
            writer_deadline_s=self._writer_deadline_s,
            grants=grants,
            segments={name: self._nodes[name].write for name in names},
            retry_after_s=retry_after_s,
        )

    def end(self, message: PutEnd, now: float) -> PutEnded:
        """Commits, and takes back what was given up."""
        settled = set(message.settled)
        for allocation_id in message.revoked:
            if (entry := self._index.written_by(allocation_id)) is not None:
                self._take_back(entry, list(entry.replicas), settled, now)
        stale = message.term != self._term
        return PutEnded(
            refusals=[
                StaleAllocation.code if stale else self._commit(commit, settled, now) for commit in message.commits
            ]
        )

    def expire(self, now: float) -> None:
        """Drops what was not committed in time: nobody knows about its writer, so it is shut out."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, allocation_id = self._deadlines.popleft()
            entry = self._index.written_by(allocation_id)
            for name in list(entry.replicas) if entry else ():
                assert entry is not None  # it has replicas
                self._nodes[name].give_up_unfenced(self._index.drop_replica(entry, name))

    def next_deadline(self) -> float | None:
        """When the first of them has been under way for too long."""
        return self._deadlines[0][0] if self._deadlines else None

    def _batch(self, message: PutStart, now: float) -> _Batch:
        """What is wrong with a put as a whole is said before anything is granted."""
        if message.replicas < 1:
            raise InvalidRequest(f"expected at least 1 replica, got {message.replicas}", param="replicas")
        preferred = [name for name in (message.preferred_node, *message.preferred_nodes) if name]
        soft = None if message.soft_pin_s is None else soft_until(message.soft_pin_s, now)
        placing = Placing(self._nodes, self._order, preferred)
        return _Batch(message, self._tenants.account(message.tenant), placing, soft)

    def _grant(self, key: str, parent: str, wanted: NewObject, batch: _Batch, now: float) -> Grant:
        old = self._index.get(key)
        if old is not None and (refusal := self._refusal(old, upsert=batch.message.upsert)):
            self._counters.skipped_puts += 1
            return Grant(key=key, refusal=refusal)
        try:
            length = extent_bytes(key, parent, wanted.size_bytes)
        except InvalidRequest as error:
            return Grant(key=key, refusal=error.code)
        if not self._is_within_quota(length, old, batch):
            self._counters.refused_by_quota += 1
            return Grant(key=key, refusal=QuotaExceeded.code)
        allocation_id = self._next_id()
        group = _group_of(wanted, batch.message, old)
        replicas = self._place(length, allocation_id, group, batch)
        if not replicas:
            self._counters.refused_puts += 1
            batch.placing.note_refused(length, batch.message.replicas)
            return Grant(key=key, refusal=NoSpace.code)
        if parent and (before := self._index.get(parent)) is not None:
            parent = before.key  # the same string: a chain's keys are kept once
        entry = PoolObject(key, parent, wanted.size_bytes, allocation_id, replicas, batch.account)
        entry.group = group
        entry.pin_until = _pin_until(batch, old)
        self._begin(entry, now)
        return Grant(key=key, allocation_id=allocation_id, placements=self._catalogue.placements(entry))

    def _begin(self, entry: PoolObject, now: float) -> None:
        """Its writer's time runs from now on."""
        entry.used_at = now
        entry.write_until = now + self._writer_deadline_s + MARGIN_S
        self._index.begin(entry)
        self._deadlines.append((entry.write_until, entry.allocation_id))

    def _refusal(self, old: PoolObject, *, upsert: bool) -> str:
        """Why a key that is there, or being written, cannot be put: each has one writer at a time."""
        if not upsert:
            return ObjectExists.code
        return "" if old.readable and not self._index.being_replaced(old.key) else ObjectBusy.code

    def _is_within_quota(self, length: int, old: PoolObject | None, batch: _Batch) -> bool:
        """What an upsert replaces does not count: it goes when the new object is there."""
        if batch.account.quota_bytes is None:
            return True
        copies = min(batch.message.replicas, len(self._nodes))
        return batch.account.has_room(length * copies - (old.extent_bytes if old is not None else 0))

    def _place(self, length: int, allocation_id: int, group: str, batch: _Batch) -> Replicas:
        """Space on different nodes."""
        same_node = batch.message.same_node
        near = [name for entry in self._index.group(group).values() for name in entry.replicas] if same_node else ()
        replicas = batch.placing.place(length, allocation_id, batch.message.replicas, near)
        if same_node:
            batch.placing.prefer(replicas)
        return replicas

    def _retry_after_s(self, now: float) -> float | None:
        """When some space may be free that is on its way to it."""
        waits = [
            ROUND_TRIP_S for node in self._nodes.values() if node.clearing or node.leaving_bytes or not node.writable
        ]
        deadlines = (node.next_deadline() for node in self._nodes.values())
        waits += [max(ROUND_TRIP_S, deadline - now) for deadline in deadlines if deadline is not None]
        return min(waits, default=None)

    def _commit(self, commit: Commit, settled: set[str], now: float) -> str:
        entry = self._index.written_by(commit.allocation_id)
        if entry is None:
            return StaleAllocation.code
        self._take_back(
            entry, [name for name in entry.replicas if entry.doomed or name not in commit.nodes], settled, now
        )
        if not entry.replicas:
            return StaleAllocation.code
        entry.checksum = commit.checksum
        entry.write_until = 0.0
        if (old := self._index.replaced_by(entry)) is not None:
            self._drop(old, entry.allocation_id, now)
        self._counters.puts += 1
        self._counters.put_bytes += entry.size_bytes
        self._index.publish(entry, now)
        self._committed(entry, now)
        return ""

    def _take_back(self, entry: PoolObject, names: Sequence[str], settled: set[str], now: float) -> None:
        """Gives up space that was granted; where writes are not settled, only once none can land any more."""
        for name in names:
            not_before = now if name in settled else entry.write_until
            self._nodes[name].give_up_unsettled(self._index.drop_replica(entry, name), not_before, now)


def _group_of(wanted: NewObject, message: PutStart, old: PoolObject | None) -> str:
    """As it is named among all tenants' groups. What an upsert does not say is as it was."""
    if wanted.group:
        return prefix_of(message.tenant) + wanted.group
    return "" if old is None else old.group


def _pin_until(batch: _Batch, old: PoolObject | None) -> float:
    """The pin of an object that is put (see pins.py). What an upsert does not say is as it was."""
    was = 0.0 if old is None else old.pin_until
    hard = batch.message.hard_pin
    if hard or (hard is None and was == HARD):
        return HARD
    if batch.soft_pin_until is not None:
        return batch.soft_pin_until
    return 0.0 if was == HARD else was
