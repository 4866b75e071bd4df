"""Puts, upserts, pins, groups and quotas against a simple model: what is evicted may be, and all else is as it was left."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mooncake_core.errors import ObjectBusy, ObjectExists, ObjectLeased, ObjectNotFound, QuotaExceeded
from mooncake_core.store import events as p
from mooncake_core.store.layout import extent_bytes
from mooncake_core.store.pool_settings import MARGIN_S, PoolSettings
from mooncake_core.store.tenants import qualified
from mooncake_core.wire.messages.objects import (
    Describe,
    Described,
    ListTenants,
    Pin,
    Pinned,
    RemoveMatching,
    SetQuota,
    TenantList,
)
from mooncake_core.wire.messages.pool import Get, Got, Grant, Remove, Removed, RemovedAll
from tests.store.pool_harness import Harness

TENANTS = ["default", "acme"]
KEYS = ["k0", "k1", "k2", "j0", "j1", "j2"]
GROUPS = ["", "", "g", "h"]
QUOTA = 64 * 60
SETTINGS = PoolSettings(
    read_lease_s=5, writer_deadline_s=10, high_watermark=0.8, low_watermark=0.5, quotas={"acme": QUOTA}
)
Name = tuple[str, str]
"""Tenant and key."""
names = st.tuples(st.sampled_from(TENANTS), st.sampled_from(KEYS))


@dataclass
class Model:
    """An object that can be read, or that is being written."""

    grant: Grant
    tenant: str
    size: int
    parent: str
    group: str
    pin_until: float
    write_until: float
    lease_until: float = 0.0

    def extents_bytes(self, nodes: set[str]) -> int:
        key, parent = qualified(self.tenant, [self.grant.key.split("\0")[-1], self.parent])
        return extent_bytes(key, parent, self.size) * len(nodes)

    def is_pinned(self, now: float) -> bool:
        return self.pin_until > now


@dataclass
class Wish:
    """What somebody wants to put."""

    name: Name
    blocks: int
    parent: str
    replicas: int
    upsert: bool
    group: str
    soft_pin_s: float | None
    hard_pin: bool | None
    ends: bool


wishes = st.builds(
    Wish,
    name=names,
    blocks=st.integers(1, 20),
    parent=st.sampled_from(["", "", *KEYS]),
    replicas=st.sampled_from([1, 1, 2]),
    upsert=st.booleans(),
    group=st.sampled_from(GROUPS),
    soft_pin_s=st.sampled_from([None, None, 0.0, 20.0]),
    hard_pin=st.sampled_from([None, None, None, None, False, True]),
    ends=st.sampled_from([True, True, False]),
)


class ObjectsMachine(RuleBasedStateMachine):
    """Nodes answer at once; time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.harness = Harness(SETTINGS)
        self.there: dict[Name, Model] = {}
        self.writing: dict[Name, Model] = {}
        self.quota: int | None = QUOTA

    @initialize()
    def begin(self) -> None:
        self.harness.join("a")
        self.harness.join("b")
        self.harness.answer_all()

    @property
    def now(self) -> float:
        return self.harness.now

    @rule(wishes=st.lists(wishes, min_size=1, max_size=5))
    def put(self, wishes: list[Wish]) -> None:
        for wish in wishes:
            self.put_one(wish)

    def put_one(self, wish: Wish) -> None:
        tenant, key = wish.name
        size = 64 * wish.blocks
        parent = wish.parent if wish.parent < key else ""  # no chain is a ring
        pins = {"soft_pin_s": wish.soft_pin_s, "hard_pin": wish.hard_pin}
        grant = self.harness.put(
            key, size, parent, wish.replicas, group=wish.group, tenant=tenant, upsert=wish.upsert, **pins
        )
        made = Model(grant, tenant, size, parent, wish.group, 0.0, self.now + SETTINGS.writer_deadline_s + MARGIN_S)
        self.check_refusal(wish, made)
        if grant.placements:
            old = self.there.get(wish.name)
            made.group = wish.group or (old.group if old else "")
            made.pin_until = self.pin_of(old, wish)
            self.writing[wish.name] = made
        self.check_evicted()
        self.harness.answer_all()
        if wish.ends:
            self.commit(wish.name)

    def check_refusal(self, wish: Wish, made: Model) -> None:
        """A refusal for want of space apart, it is known what is refused."""
        refusal = made.grant.refusal
        if wish.name in self.writing:
            assert refusal == (ObjectBusy.code if wish.upsert else ObjectExists.code)
        elif wish.name in self.there and not wish.upsert:
            assert refusal == ObjectExists.code
        elif made.tenant == "acme" and self.quota is not None:
            old = self.there.get(wish.name)
            more = self.extents(made, wish.replicas) - (self.held(old) if old else 0)
            over = self.used("acme") + more > self.quota
            assert (refusal == QuotaExceeded.code) == over
        else:
            assert refusal in ("", "no_space")

    def extents(self, made: Model, replicas: int) -> int:
        return made.extents_bytes({str(number) for number in range(replicas)})

    def held(self, entry: Model) -> int:
        return entry.extents_bytes({placement.node for placement in entry.grant.placements})

    def used(self, tenant: str) -> int:
        entries = [*self.there.values(), *self.writing.values()]
        return sum(self.held(entry) for entry in entries if entry.tenant == tenant)

    def pin_of(self, old: Model | None, wish: Wish) -> float:
        was = old.pin_until if old and old.is_pinned(self.now) else 0.0
        if wish.hard_pin or (wish.hard_pin is None and was == math.inf):
            return math.inf
        if wish.soft_pin_s is not None:
            return self.now + wish.soft_pin_s if wish.soft_pin_s else 0.0
        return 0.0 if was == math.inf else was

    def check_evicted(self) -> None:
        """What is gone was neither leased nor hard pinned, and all of its group, or all that hung on it, went with it; if it was
        softly pinned, nothing else could go. One replica may go alone."""
        gone: dict[Name, Model] = {}
        for name, entry in list(self.there.items()):
            found = self.described(name)
            if found is None:
                gone[name] = self.there.pop(name)
            else:
                entry.grant = Grant(key=entry.grant.key, placements=found.replicas)
        for name, entry in gone.items():
            assert entry.lease_until <= self.now
            assert entry.pin_until != math.inf
            if entry.group:
                assert not [other for other in self.there.values() if self.same_group(other, entry)]
            for other in self.there.values() if not entry.group else ():
                assert (other.tenant, other.parent) != name
        if any(entry.is_pinned(self.now) for entry in gone.values()):
            assert not [entry for name, entry in self.there.items() if self.may_go_alone(name, entry, gone)]

    def same_group(self, one: Model, other: Model) -> bool:
        return (one.tenant, one.group) == (other.tenant, other.group)

    def may_go_alone(self, name: Name, entry: Model, gone: dict[Name, Model]) -> bool:
        """Of a node from which something softly pinned went, and could have gone instead: of no group, with no chain."""
        nodes = {p.node for e in gone.values() if e.is_pinned(self.now) and not e.group for p in e.grant.placements}
        had_child = any((other.tenant, other.parent) == name for other in [*self.there.values(), *gone.values()])
        here = {placement.node for placement in entry.grant.placements}
        free = entry.lease_until <= self.now and not entry.is_pinned(self.now) and not entry.group and not had_child
        return free and len(nodes) == 1 and here == nodes

    @rule(number=st.integers(0, 5), commit=st.booleans())
    def end(self, number: int, commit: bool) -> None:
        if not self.writing:
            return
        name = list(self.writing)[number % len(self.writing)]
        if commit:
            self.commit(name)
        else:
            self.harness.end(self.writing.pop(name).grant, revoke=True)
            self.harness.answer_all()

    def commit(self, name: Name) -> None:
        entry = self.writing.pop(name, None)
        if entry is None:
            return
        self.harness.write(entry.grant, entry.size, entry.parent)
        assert self.harness.end(entry.grant) == ""
        entry.pin_until = entry.pin_until if entry.is_pinned(self.now) else 0.0
        self.there[name] = entry
        self.harness.answer_all()

    @rule(tenant=st.sampled_from(TENANTS), keys=st.lists(st.sampled_from(KEYS), max_size=3), lease=st.booleans())
    def get(self, tenant: str, keys: list[str], lease: bool) -> None:
        got = self.harness.ask(Get(keys=keys, tenant=tenant, lease=lease))
        assert isinstance(got, Got)
        for key, found in zip(keys, got.objects, strict=True):
            entry = self.there.get((tenant, key))
            assert (found is None) == (entry is None)
            if entry is not None and lease:
                entry.lease_until = self.now + SETTINGS.read_lease_s + MARGIN_S

    @rule(name=names, hard=st.booleans(), soft_s=st.sampled_from([0.0, 5.0, 30.0]))
    def pin(self, name: Name, hard: bool, soft_s: float) -> None:
        tenant, key = name
        code = "" if name in self.there else ObjectNotFound.code
        assert self.harness.ask(Pin(keys=[key], hard=hard, soft_s=soft_s, tenant=tenant)) == Pinned(refusals=[code])
        if name in self.there:
            self.there[name].pin_until = math.inf if hard else self.now + soft_s if soft_s else 0.0

    @rule(name=names, force=st.booleans())
    def remove(self, name: Name, force: bool) -> None:
        tenant, key = name
        entry = self.there.get(name)
        code = ObjectNotFound.code if entry is None else ""
        if entry is not None and entry.lease_until > self.now and not force:
            code = ObjectLeased.code
        assert self.harness.ask(Remove(keys=[key], force=force, tenant=tenant)) == Removed(refusals=[code])
        if not code:
            del self.there[name]
        self.harness.answer_all()

    @rule(tenant=st.sampled_from(TENANTS), letter=st.sampled_from("kj"), force=st.booleans(), luck=st.integers(0, 2))
    def remove_matching(self, tenant: str, letter: str, force: bool, luck: int) -> None:
        if luck:  # seldom: a pool that is empty most of the time evicts nothing
            return
        matching = [name for name in self.there if name[0] == tenant and name[1].startswith(letter)]
        going = [name for name in matching if force or self.there[name].lease_until <= self.now]
        answer = self.harness.ask(RemoveMatching(pattern=f"^{letter}", force=force, tenant=tenant))
        assert answer == RemovedAll(removed=len(going), kept=len(matching) - len(going))
        for name in going:
            del self.there[name]
        self.harness.answer_all()

    @rule(blocks=st.sampled_from([None, 10, 40, 80]))
    def set_quota(self, blocks: int | None) -> None:
        self.quota = None if blocks is None else 64 * blocks
        self.harness.ask(SetQuota(tenant="acme", quota_bytes=self.quota))

    @rule(seconds=st.sampled_from([0.5, 3.0, 7.0, 11.5]))
    def wait(self, seconds: float) -> None:
        self.harness.now += seconds
        self.harness.feed(p.Tick())
        self.harness.answer_all()
        for name, entry in list(self.writing.items()):
            if entry.write_until <= self.now:
                del self.writing[name]

    @invariant()
    def books_are_right(self) -> None:
        assert self.harness.pool.check() == []

    @invariant()
    def all_is_as_it_was_left(self) -> None:
        for tenant in TENANTS:
            for key in KEYS:
                entry, found = self.there.get((tenant, key)), self.described((tenant, key))
                assert (entry is None) == (found is None)
                if entry is None or found is None:
                    continue
                soft = 0.0 if entry.pin_until == math.inf else max(0.0, entry.pin_until - self.now)
                assert (found.size_bytes, found.group, found.parent) == (entry.size, entry.group, entry.parent)
                assert (found.hard_pinned, found.soft_pin_s) == (entry.pin_until == math.inf, soft)
                assert found.lease_s == max(0.0, entry.lease_until - self.now)
                assert found.being_replaced == ((tenant, key) in self.writing)

    @invariant()
    def tenants_hold_what_they_hold(self) -> None:
        answer = self.harness.ask(ListTenants())
        assert isinstance(answer, TenantList)
        for usage in answer.tenants:
            assert usage.used_bytes == self.used(usage.tenant)
            assert usage.num_objects == sum(entry.tenant == usage.tenant for entry in self.there.values())

    def teardown(self) -> None:
        """When no lease and no pin holds them any more, all objects can be evicted."""
        for tenant in TENANTS:
            self.harness.ask(Pin(keys=KEYS, tenant=tenant))
        for number in range(10):  # until there is one on each node, which has no room for others
            self.harness.settle()
            grant = self.harness.put(f"large{number}", 64 * 59, preferred="ab"[number % 2], hard_pin=True)
            if grant.placements:
                self.harness.write(grant, 64 * 59)
                self.harness.end(grant)
        assert [name for name in self.there if self.described(name) is not None] == []
        assert self.harness.pool.check() == []

    def described(self, name: Name) -> Any:
        tenant, key = name
        described = self.harness.ask(Describe(keys=[key], tenant=tenant))
        assert isinstance(described, Described)
        return described.objects[0]


TestObjectsMachine = ObjectsMachine.TestCase
TestObjectsMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
