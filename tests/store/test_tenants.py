"""Tenants share no objects, and each may hold so many bytes."""

from __future__ import annotations

from typing import Any

import pytest

from mooncake_core.errors import (
    InvalidRequest,
    ObjectNotFound,
    QuotaExceeded,
    TenantUnknown,
)
from mooncake_core.store.pool_settings import PoolSettings
from mooncake_core.store.tenants import qualified, split
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.objects import ListTenants, SetQuota, TenantList, TenantUsage
from mooncake_core.wire.messages.pool import Exists, Get, PutStart, Remove, RemoveAll, Removed, RemovedAll
from tests.store.pool_harness import Harness

QUOTAS = {"acme": 64 * 8, "zoo": None}


def made(quotas: dict[str, int | None] | None = None) -> Harness:
    harness = Harness(PoolSettings(read_lease_s=5, writer_deadline_s=10, quotas=quotas or {}))
    harness.join("a")
    harness.answer_all()
    return harness


def exists(harness: Harness, key: str, tenant: str) -> bool:
    reply: Any = harness.ask(Exists(keys=[key], tenant=tenant))
    (present,) = reply.present
    return bool(present)


def usage(harness: Harness, tenant: str) -> TenantUsage:
    answer = harness.ask(ListTenants())
    assert isinstance(answer, TenantList)
    return next(entry for entry in answer.tenants if entry.tenant == tenant)


def test_a_tenants_objects_are_nobody_elses() -> None:
    harness = made()
    harness.store("k", 64, tenant="acme")
    mine = harness.describe("k", "acme")
    assert mine is not None
    assert (mine.key, mine.tenant, mine.size_bytes) == ("k", "acme", 64)
    for tenant in ("default", "zoo", "acm"):
        assert not exists(harness, "k", tenant)
        assert harness.ask(Remove(keys=["k"], tenant=tenant)) == Removed(refusals=[ObjectNotFound.code])
    harness.store("k", 128)
    others = harness.describe("k")
    assert others is not None
    assert others.size_bytes == 128
    assert harness.ask(Remove(keys=["k"], tenant="acme")) == Removed(refusals=[""])
    assert exists(harness, "k", "default")


@pytest.mark.parametrize("tenant", ["default", "zoo"])
def test_no_key_names_another_tenants_object(tenant: str) -> None:
    harness = made()
    harness.store("k", tenant="acme")
    (stored,) = harness.nodes["a"].slots.values()
    for forged in (stored.key, stored.key[1:], stored.key + "\0"):
        assert not exists(harness, forged, tenant)
        got: Any = harness.ask(Get(keys=[forged], tenant=tenant))
        assert got.objects == [None]
    refusal = harness.put(stored.key).refusal
    assert refusal == InvalidRequest.code


def test_keys_are_told_apart_whatever_is_in_them() -> None:
    pairs = [(t, k) for t in ("default", "a", "b", "a\x01") for k in ("k", "a", "b\0k", "k\0", "\x01k")]
    named = [qualified(tenant, [key])[0] for tenant, key in pairs]
    assert len(set(named)) == len(pairs)
    assert [split(key) for key in named] == pairs
    assert qualified("a", [""]) == [""]
    assert qualified("default", ["", "k", "\0a\0k"]) == ["", "k", ""]


def test_over_its_quota_a_tenant_is_refused_until_it_has_removed_something() -> None:
    harness = made(QUOTAS)
    harness.store("k0", 64 * 3, tenant="acme")
    harness.store("k1", 64 * 3, tenant="acme")
    assert usage(harness, "acme") == TenantUsage(tenant="acme", quota_bytes=64 * 8, used_bytes=64 * 8, num_objects=2)
    assert harness.put("k2", 64, tenant="acme").refusal == QuotaExceeded.code
    assert harness.put("k2", 64, tenant="zoo").placements
    assert harness.put("k2", 64).placements
    assert harness.pool.report(0).refused_by_quota == 1
    harness.ask(Remove(keys=["k0"], tenant="acme"))
    assert harness.put("k2", 64, tenant="acme").placements


def test_puts_under_way_and_replicas_count_against_the_quota() -> None:
    harness = made(QUOTAS)
    harness.join("b")
    harness.answer_all()
    first = harness.put("k0", 64 * 2, replicas=2, tenant="acme")
    assert usage(harness, "acme").used_bytes == 64 * 6
    assert harness.put("k1", 64 * 2, tenant="acme").refusal == QuotaExceeded.code
    harness.end(first, revoke=True)
    assert usage(harness, "acme").used_bytes == 0
    assert harness.put("k1", 64 * 3, replicas=2, tenant="acme").placements


def test_an_upsert_within_the_quota_may_take_it_twice_for_a_while() -> None:
    harness = made(QUOTAS)
    harness.store("k", 64 * 7, tenant="acme")
    grant = harness.put("k", 64 * 7, tenant="acme", upsert=True)
    assert usage(harness, "acme").used_bytes == 64 * 16
    harness.end(grant)
    assert usage(harness, "acme").used_bytes == 64 * 8
    assert harness.put("k", 64 * 8, tenant="acme", upsert=True).refusal == QuotaExceeded.code


def test_a_quota_is_set_while_the_pool_runs() -> None:
    harness = made(QUOTAS)
    assert harness.ask(SetQuota(tenant="acme", quota_bytes=64)) == Done()
    assert harness.put("k", 64, tenant="acme").refusal == QuotaExceeded.code
    assert harness.ask(SetQuota(tenant="new", quota_bytes=None)) == Done()
    assert harness.put("k", 64, tenant="new").placements
    for tenant, quota in (("", 1), ("acme", -1), ("a\0b", 1), ("x" * 65, 1)):
        assert isinstance(harness.ask(SetQuota(tenant=tenant, quota_bytes=quota)), InvalidRequest)


def test_a_tenant_that_is_not_configured_is_told_so() -> None:
    harness = made(QUOTAS)
    for message in (Exists(keys=["k"], tenant="other"), PutStart(objects=[], tenant="other")):
        error = harness.ask(message)
        assert isinstance(error, TenantUnknown)
        assert error.message == "expected one of the tenants acme, default, zoo, got other: add it to pool.tenants"
    assert exists(harness, "k", "default") is False


def test_all_of_one_tenant_are_removed_or_all_of_all() -> None:
    harness = made()
    for tenant in ("default", "acme", "zoo"):
        harness.store("k", tenant=tenant)
    grant = harness.put("writing", tenant="zoo")
    assert harness.ask(RemoveAll(tenant="acme", force=True)) == RemovedAll(removed=1, kept=0)
    assert [exists(harness, "k", tenant) for tenant in ("default", "acme", "zoo")] == [True, False, True]
    assert harness.end(grant) == ""
    assert harness.ask(RemoveAll()) == RemovedAll(removed=1, kept=0)
    assert harness.ask(RemoveAll(tenant="")) == RemovedAll(removed=2, kept=0)
    assert harness.pool.report(0).num_objects == 0


def test_a_new_master_knows_whose_objects_they_are() -> None:
    harness = made(QUOTAS)
    harness.store("k", tenant="acme")
    harness.store("k")
    harness.restart()
    harness.answer_all()
    assert exists(harness, "k", "acme")
    assert usage(harness, "acme").used_bytes == 128
    assert usage(harness, "default").num_objects == 1
    assert harness.pool.check() == []
