"""The alert rules are about figures that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mooncake_core.gateway.metrics import GatewayMetrics
from mooncake_core.roles.master.http.metrics import MasterMetrics
from mooncake_core.telemetry.loop_pauses import LoopPauses
from mooncake_core.wire.messages.inspection import CacheReport
from mooncake_core.wire.messages.objects import TenantUsage
from mooncake_core.wire.messages.tiering import TierFill
from mooncake_core.wire.messages.usage import NodeUsage

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "configs" / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
GUIDE = (ROOT / "docs" / "guide" / "pool.md").read_text()


class State:
    """A master with one of everything."""

    term = 1
    num_requests = 0
    pauses = LoopPauses()

    def member_states(self) -> list[tuple[str, str]]:
        return [("store", "ready")]

    def report(self) -> CacheReport:
        names = (
            "num_objects num_writing capacity_bytes used_bytes quarantined_bytes puts skipped_puts refused_puts hits misses "
            "evicted prompt_tokens cached_tokens"
        )
        counts = dict.fromkeys(names.split(), 1)
        return CacheReport(
            **counts,
            entries=[],
            nodes=[
                NodeUsage(name="n", state="ready", capacity_bytes=1, used_bytes=1, quarantined_bytes=0, num_objects=1)
            ],
            tenants=[TenantUsage(tenant="default", quota_bytes=None, used_bytes=1, num_objects=1)],
            hits_by_tier={"dram": 1},
            hit_bytes_by_tier={"dram": 1},
            cached_tokens_by_tier={"dram": 1},
            tiers={"n": [TierFill(kind="lmdb", capacity_bytes=1)]},
        )


def samples(text: str) -> set[str]:
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


@pytest.fixture(scope="module")
def shown() -> set[str]:
    """Names of all figures of a master and a gateway."""
    gateway = GatewayMetrics()
    gateway.request("/v1/completions", 200)
    master: Any = State()
    return samples(MasterMetrics(master).render().decode()) | samples(gateway.render().decode())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_figure_in_a_rule_is_shown(rule: dict[str, Any], shown: set[str]) -> None:
    named = set(re.findall(r"mooncake_\w+", rule["expr"]))
    assert named
    assert named <= shown
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]


def test_every_figure_in_the_guide_is_shown(shown: set[str]) -> None:
    named = set(re.findall(r"`(mooncake_\w+)", GUIDE))
    assert named
    assert named <= shown
