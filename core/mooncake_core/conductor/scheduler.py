"""A Conductor of what the configuration names: the live master's and a simulation's are made alike."""

from __future__ import annotations

import random
from dataclasses import dataclass

from mooncake_core import registry
from mooncake_core.conductor.admission.contract import AdmissionSettings
from mooncake_core.conductor.balance import Balance
from mooncake_core.conductor.conductor import Conductor, ConductorSettings
from mooncake_core.conductor.policies.contract import PolicySettings
from mooncake_core.conductor.role_planning import RolePlanner, RoleSettings
from mooncake_core.conductor.shares import TenantShares
from mooncake_core.config.schema import FairnessConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions:
    """What is chosen in the YAML."""

    policy: str
    admission: str
    balancing_threshold: float
    spread_shared: bool
    equal_within: float
    replicate: bool
    ttft_slo_s: float | None
    tbt_slo_s: float | None
    decode_time_s: float | None
    headroom: float
    shed_weight: float
    plan_roles: bool
    """Where there are both objectives."""
    fairness: FairnessConfig | None
    """Between tenants; None: none."""
    seed: int
    max_decisions: int = 1000


def make_conductor(options: SchedulerOptions) -> Conductor:
    """
    Raises:
        PluginUnknown: no policy or admission of such a name is installed.
    """
    policy = registry.load("policy", options.policy)(PolicySettings(balancing_threshold=options.balancing_threshold))
    settings = AdmissionSettings(
        ttft_slo_s=options.ttft_slo_s,
        tbt_slo_s=options.tbt_slo_s,
        decode_time_s=options.decode_time_s,
        headroom=options.headroom,
        shed_weight=options.shed_weight,
    )
    admission = registry.load("admission", options.admission)(settings)
    balance = None
    if options.plan_roles and options.ttft_slo_s is not None and options.tbt_slo_s is not None:
        balance = Balance(RolePlanner(RoleSettings()), options.ttft_slo_s, options.tbt_slo_s)
    replicates = options.replicate and policy.uses_pool
    return Conductor(
        ConductorSettings(
            max_decisions=options.max_decisions,
            spread_shared=options.spread_shared,
            equal_within=options.equal_within,
            replication_threshold=options.balancing_threshold if replicates else None,
        ),
        policy,
        options.policy,
        random.Random(options.seed),
        admission,
        balance,
        TenantShares(options.fairness) if options.fairness is not None else None,
    )
