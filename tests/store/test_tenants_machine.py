"""Tenants with quotas as a state machine, in a pool with tiers: each is charged what it holds, and sees its own keys only."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mooncake_core.errors import QuotaExceeded
from mooncake_core.store import events as p
from mooncake_core.store.layout import extent_bytes
from mooncake_core.store.tenants import qualified
from mooncake_core.wire.messages.objects import ListTenants, SetQuota, TenantList, TenantUsage
from mooncake_core.wire.messages.pool import Exists, ExistsReply, Get, Grant, PutEnd, Remove, RemoveAll
from mooncake_core.wire.messages.tasks import CopyObjects, EvictObjects
from tests.store.pool_harness import NODES
from tests.store.tier_harness import TieredHarness

TENANTS = ["default", "acme", "zoo"]
KEYS = [f"k{number}" for number in range(5)]

tenants = st.sampled_from(TENANTS)
lists_of_keys = st.lists(st.sampled_from(KEYS), max_size=3)


class TenantsMachine(RuleBasedStateMachine):
    """All tenants use the same keys. Objects leave DRAM and come back, nodes and masters are started again."""

    def __init__(self) -> None:
        super().__init__()
        self.harness = TieredHarness()
        self.writing: list[tuple[Grant, int, tuple[str, str]]] = []
        self.put: set[tuple[str, str]] = set()
        """(tenant, key) that was ever committed, and not surely removed since."""

    @initialize()
    def begin(self) -> None:
        self.harness.join("a")
        self.harness.join("b")
        self.harness.answer_all()

    def usage(self, tenant: str) -> TenantUsage | None:
        answer = self.harness.ask(ListTenants())
        assert isinstance(answer, TenantList)
        return next((entry for entry in answer.tenants if entry.tenant == tenant), None)

    @rule(
        tenant=tenants,
        key=st.sampled_from(KEYS),
        blocks=st.integers(1, 8),
        copies=st.integers(1, 2),
        upsert=st.booleans(),
    )
    def put_start(self, tenant: str, key: str, blocks: int, copies: int, upsert: bool) -> None:
        before = self.usage(tenant)
        grant = self.harness.put(key, 64 * blocks, replicas=copies, tenant=tenant, upsert=upsert)
        after = self.usage(tenant)
        (stands,) = qualified(tenant, [key])
        length = extent_bytes(stands, "", 64 * blocks)
        if grant.refusal == QuotaExceeded.code:
            assert before is not None
            assert before.quota_bytes is not None
            assert before.used_bytes + length * copies > before.quota_bytes, "it was refused though there is room"
        if not grant.placements:
            return
        assert grant.key == stands
        assert after is not None
        used_bytes = before.used_bytes if before else 0
        assert after.used_bytes == used_bytes + length * len(grant.placements)
        if not upsert and after.quota_bytes is not None:
            assert after.used_bytes <= after.quota_bytes, "it was granted beyond the quota"
        self.writing.append((grant, 64 * blocks, (tenant, key)))

    @rule(commit=st.booleans())
    def put_end(self, commit: bool) -> None:
        if not self.writing:
            return
        grant, size, whose = self.writing.pop(0)
        if commit:
            self.harness.write(grant, size)
        good = [one.node for one in grant.placements if commit and self.harness.can_write(grant, one.node)]
        if self.harness.end(grant, revoke=not good, nodes=good) == "" and good:
            self.put.add(whose)

    @rule(tenant=tenants, quota_blocks=st.sampled_from([None, 4, 10]))
    def set_quota(self, tenant: str, quota_blocks: int | None) -> None:
        self.harness.ask(SetQuota(tenant=tenant, quota_bytes=None if quota_blocks is None else 64 * quota_blocks))

    @rule(tenant=tenants, keys=lists_of_keys)
    def get(self, tenant: str, keys: list[str]) -> None:
        self.harness.feed(p.Asked(next(self.harness.tokens), Get(keys=keys, tenant=tenant)))

    @rule(tenant=tenants, keys=lists_of_keys)
    def remove(self, tenant: str, keys: list[str]) -> None:
        self.harness.ask(Remove(keys=keys, force=True, tenant=tenant))
        self.put -= {(tenant, key) for key in keys}

    @rule(tenant=tenants)
    def remove_all(self, tenant: str) -> None:
        self.harness.ask(RemoveAll(force=True, tenant=tenant))
        self.put = {(other, key) for other, key in self.put if other != tenant}

    @rule(name=st.sampled_from(NODES))
    def evict(self, name: str) -> None:
        self.harness.ask(EvictObjects(node=name, size_bytes=64 * 10))

    @rule(tenant=tenants, keys=lists_of_keys, name=st.sampled_from(NODES))
    def copy(self, tenant: str, keys: list[str], name: str) -> None:
        self.harness.ask(CopyObjects(keys=keys, target=name, tenant=tenant))

    @rule()
    def answer_all(self) -> None:
        while self.harness.pulls:
            self.harness.pull()
        self.harness.answer_all()

    @rule(seconds=st.sampled_from([0.5, 6.5, 11.5]))
    def tick(self, seconds: float) -> None:
        self.harness.now += seconds
        self.harness.feed(p.Tick())

    @rule(what=st.sampled_from(["master", "a", "b"]), luck=st.integers(0, 5))
    def restart(self, what: str, luck: int) -> None:
        """What was removed while a node was away may come back with it: docs/decisions/0022, limit."""
        if luck:
            return
        if what == "master":
            self.writing.clear()
            self.harness.restart()
            self.put = {(tenant, key) for tenant in TENANTS for key in KEYS}
        else:
            self.harness.leave(what)
            self.harness.join(what)

    @invariant()
    def books_are_right(self) -> None:
        assert self.harness.pool.check() == []

    @invariant()
    def each_sees_its_own_only(self) -> None:
        for tenant in TENANTS:
            reply = self.harness.ask(Exists(keys=KEYS, tenant=tenant))
            assert isinstance(reply, ExistsReply)
            there = {(tenant, key) for key, present in zip(KEYS, reply.present, strict=True) if present}
            assert there <= self.put

    def teardown(self) -> None:
        given_up = [grant.allocation_id for grant, _, _ in self.writing]
        self.harness.ask(PutEnd(term=self.harness.term, commits=[], revoked=given_up, settled=NODES))
        self.harness.settle()
        self.harness.ask(RemoveAll(force=True, tenant=""))
        self.harness.settle()
        answer = self.harness.ask(ListTenants())
        assert isinstance(answer, TenantList)
        assert all((usage.used_bytes, usage.num_objects) == (0, 0) for usage in answer.tenants)


TestTenantsMachine = TenantsMachine.TestCase
TestTenantsMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
