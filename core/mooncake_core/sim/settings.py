"""A simulation's YAML as types: which trace, on which hardware, by which systems. Each field's docstring is its documentation.

Sizes and durations are written with units ("1TiB", "30s"); here they are bytes and seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from mooncake_core.config.schema import Count, Duration, FairnessConfig, Name, Section

Share = Annotated[float, Meta(gt=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]


class ChangeSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that happens to an instance."""

    at: Duration = 0.0
    """When."""
    instance: str = ""
    """Which: prefill-0, decode-3; of coupled systems instance-0."""
    change: Literal["fail", "fail-host", "join", "to-prefill", "to-decode"] = "fail"
    """fail: the instance is gone, and its node stays; fail-host: both are gone; join: it comes back, or a new one comes;
    to-prefill, to-decode: it finishes what it has and joins in the other role."""


class WorkloadSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A generated load instead of a trace: requests of equal length that come by chance (technical report, simulated data)."""

    name: Name = "simulated"
    """By which systems say that they serve it."""
    requests: Count = 500
    """How many come."""
    rate: Positive = 1.0
    """Requests per second, in the mean; `speed` multiplies it."""
    input_tokens: Count = 16_384
    """Of each prompt."""
    output_tokens: Count = 512
    """Of each answer."""
    shared: Annotated[float, Meta(ge=0, lt=1)] = 0.5
    """Share of a prompt that is the same for all requests of a family."""
    tenants: dict[Name, Positive] = field(default_factory=dict)
    """Whose requests they are: tenants, each with its part of them (`flood: 9`, `steady: 1`); empty: all of one tenant."""
    families: Count = 16
    """Prefixes that are shared; a request has one of them by chance."""
    ttft_factor: Positive | None = None
    """Objective: time to first token, over that of a lone request; null: `slo.ttft`."""
    tbt_factor: Positive | None = None
    """Objective: time between tokens, over that of a lone request; null: `slo.tbt`."""


class SystemSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cluster that serves the trace."""

    name: Name = "mooncake"
    """In tables and plots."""
    workload: str = ""
    """What it serves: one of `workloads`; empty: the trace of the command."""
    kind: Literal["disaggregated", "coupled"] = "disaggregated"
    """disaggregated: the Conductor with prefill and decode instances; coupled: instances that do both, as vLLM does."""
    prefill: Annotated[int, Meta(ge=0)] = 8
    """Prefill instances, or groups of them with stages."""
    decode: Annotated[int, Meta(ge=0)] = 8
    """Decode instances."""
    stages: Count = 1
    """Members of a prefill group, each with a part of the layers (chunked pipeline parallelism)."""
    policy: str = "kvcache-centric"
    """Scheduling policy plugin."""
    balancing_threshold: Annotated[float, Meta(ge=1)] = 2.0
    """Fetch the best remote prefix when it is longer than the local one by more than this factor."""
    equal_within: Annotated[float, Meta(ge=0)] = 0.0
    """Instances whose expected times to first token differ by such a share at most do equally well: any of them is taken."""
    spread_shared: bool = False
    """Beginnings of prompts that many requests share earn no credit until enough nodes have them. The paper has no such rule."""
    admission: str = "none"
    """Admission plugin, which turns requests away for the objectives in `slo`."""
    decode_time: Duration | None = None
    """How long admission predictive takes each request to decode; null: the mean of those that have ended."""
    headroom: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Admission headroom keeps such a share of the time between tokens free."""
    shed_weight: Annotated[float, Meta(ge=0)] = 64.0
    """Admission headroom: by how much more what a request costs beyond the mean counts where the objective is used up; times the
    share of requests that are refused."""
    fairness: FairnessConfig | None = None
    """Between the tenants of a trace or workload, under overload; null: none, as in the paper."""
    plan_roles: bool = False
    """The Conductor has instances change their roles where one pool has too much to do and the other little."""
    replicate: bool = True
    """A node keeps what its instance fetched or computed though another node has it."""
    layerwise: bool = True
    """KV goes to the decode instance layer by layer while the prompt is computed."""
    instances: Annotated[int, Meta(ge=0)] = 16
    """Of a coupled system."""
    router: Literal["least-requests", "round-robin", "random"] = "least-requests"
    """Of a coupled system."""
    prefix_caching: bool = False
    """A coupled instance keeps blocks in its HBM for other requests."""
    chunked_prefill: bool = False
    """A coupled instance computes a chunk of a prompt beside each decode step."""
    changes: list[ChangeSettings] = field(default_factory=list)
    """Failures, joins and role switches."""


class EfficiencySettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shares of the published peaks that are reached, and what is on top (conductor/roofline.py)."""

    prefill: Share = 0.5
    """Of operations, in prefill."""
    decode: Share = 0.5
    """Of operations, in a decode step."""
    memory: Share = 0.8
    """Of the bandwidth of device memory."""
    network: Share = 0.87
    """Of the NICs."""
    layer_overhead: Duration = 30e-6
    """Of a step, per layer."""
    memory_reserve: Share = 0.1
    """Of device memory: neither weights nor KV may have it."""


class EngineSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How engines keep KV and make batches."""

    block_tokens: Count = 512
    """Tokens per block."""
    chunk_tokens: Count = 4096
    """A prefill instance computes so many tokens at once."""
    max_tokens: Count = 2048
    """Answers are at most so long: memory is reserved for them."""
    batch_tokens: Count = 131_072
    """A coupled instance computes waiting prompts together up to so many tokens."""
    mixed_batch_tokens: Count = 2048
    """Tokens of a step with chunked prefill."""
    max_sequences: Count = 256
    """In a batch of a coupled instance."""
    eviction: str = "lru"
    """Eviction policy plugin of pool and prefix caches."""
    disk: bool = False
    """The pool has a tier on the hosts' disks below their DRAM."""


class SloSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request must meet to count."""

    ttft: Duration = 30.0
    """Time to first token."""
    tbt: Duration = 0.1
    """Time between tokens: mean of the slowest tenth of a request's gaps."""
    thresholds: list[Duration] = field(default_factory=list)
    """More limits of the time between tokens for which goodput is reported."""


class SimulationConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    constants: str = ""
    """A file, beside this one, whose sections count where this one has none of that name."""
    seed: Annotated[int, Meta(ge=0)] = 0
    """Of all that is random."""
    speed: Positive = 1.0
    """Requests come so much faster than in the trace."""
    longest_answer: Count | None = None
    """Answers end after so many tokens; null: as the trace has them."""
    sample_interval: Duration = 10.0
    """Between two looks at the load."""
    report_interval: Duration = 1.0
    """Between two reports of an instance to the Conductor."""
    slo: SloSettings = field(default_factory=SloSettings)
    """What counts as served well."""
    model: str = ""
    """What is served: a file of `configs/models`, named from where this one is."""
    hardware: str = ""
    """On what: a file of `configs/hardware`."""
    efficiency: EfficiencySettings = field(default_factory=EfficiencySettings)
    """How well."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    """And in what way."""
    workloads: list[WorkloadSettings] = field(default_factory=list)
    """Loads that are generated."""
    systems: list[SystemSettings] = field(default_factory=lambda: [SystemSettings()])
    """What is compared."""
