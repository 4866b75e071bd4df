"""What `mooncake status` and `mooncake inspect` ask."""

from __future__ import annotations

from msgspec import Struct

from mooncake_core.wire.messages.membership import InstanceLoad
from mooncake_core.wire.messages.objects import TenantUsage
from mooncake_core.wire.messages.tasks import DrainStatus
from mooncake_core.wire.messages.tiering import TierFill
from mooncake_core.wire.messages.usage import HotPrefix, NodeUsage


class GetStatus(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Who is there, and is the cluster able to serve?"""


class MemberStatus(Struct, frozen=True, kw_only=True, gc=False):
    """One member as the master sees it."""

    name: str
    role: str
    host_id: str
    control_address: str
    pid: int
    state: str
    """joining (block report under way), ready, or draining (it finishes what it runs, and leaves). Of a node that is being
    drained: draining, stuck or drained."""
    last_heard_s: float
    """Seconds since its last sign of life."""
    capacity_bytes: int = 0
    used_bytes: int = 0
    num_objects: int = 0
    local_to: str = ""
    """The instance whose local node this is."""
    model: str = ""
    load: InstanceLoad | None = None
    drain: DrainStatus | None = None
    """Of a node that is being drained: how far that is."""


class Status(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The cluster. `missing` says in words what is needed before it can do what it is for; empty means it can."""

    cluster: str
    term: int
    uptime_s: float
    members: list[MemberStatus]
    missing: list[str]
    num_requests: int
    """Requests placed and not ended."""
    serving_needs: list[str] = []
    """What is needed, in words, before requests can be served: also of a pool without instances, which misses nothing. Older
    masters do not say; theirs is what is missing."""


class InspectCache(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """What does the pool hold? Optionally one key's placement, or the first `limit` keys that start with `prefix`."""

    prefix: str = ""
    limit: int = 0
    check: bool = False
    """Also check that every byte, slot and request is accounted for exactly once."""
    hottest: int = 0
    """So many of the prefixes that are read most."""


class CacheEntry(Struct, frozen=True, kw_only=True, gc=False):
    """One object."""

    key: str
    size_bytes: int
    nodes: list[str]
    leased: bool
    idle_s: float
    """Seconds since it was last put or read."""
    tenant: str = "default"
    pinned: bool = False
    tiered_on: list[str] = []
    """Nodes that hold it in a tier."""


class CacheReport(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The pool in numbers; counters count since the master's start. Tokens are prompt tokens of served requests."""

    num_objects: int
    num_writing: int
    capacity_bytes: int
    used_bytes: int
    """Space taken by objects, those being written and those awaiting clearing included."""
    quarantined_bytes: int
    puts: int
    put_bytes: int = 0
    """Of the objects that were put."""
    skipped_puts: int
    refused_puts: int
    hits: int
    hit_bytes: int = 0
    """Of the objects that reads found."""
    misses: int
    evicted: int
    prompt_tokens: int
    cached_tokens: int
    entries: list[CacheEntry]
    nodes: list[NodeUsage] = []
    hottest: list[HotPrefix] = []
    problems: list[str] = []
    """What the check found."""
    tenants: list[TenantUsage] = []
    refused_by_quota: int = 0
    master_bytes: int = 0
    """Resident memory of the master's process."""
    master_bytes_per_object: int = 0
    """How much of it has come per object since its start; 0 where there are too few objects to tell."""
    evicted_bytes: int = 0
    eviction_rounds: int = 0
    stalled_rounds: int = 0
    """Rounds of eviction that ended because nothing more could go."""
    stalled_nodes: list[str] = []
    """Nodes that are too full now, where nothing may go."""
    hits_by_tier: dict[str, int] = {}
    """Reads by where the object lay when it was asked for: dram, or the kind of a tier."""
    hit_bytes_by_tier: dict[str, int] = {}
    cached_tokens_by_tier: dict[str, int] = {}
    """`cached_tokens`, by where their blocks lay."""
    demoted: int = 0
    """Objects that went to a tier, and lost their place in DRAM."""
    tiers: dict[str, list[TierFill]] = {}
    """Node → its tiers."""

    @property
    def token_hit_ratio(self) -> float:
        """Prompt tokens served from the cache / prompt tokens: the hit ratio, wherever one is shown."""
        return self.cached_tokens / max(1, self.prompt_tokens)

    @property
    def token_hit_ratio_by_tier(self) -> dict[str, float]:
        """The same, split by where the tokens' blocks lay."""
        return {tier: tokens / max(1, self.prompt_tokens) for tier, tokens in self.cached_tokens_by_tier.items()}

    @property
    def byte_hit_ratio(self) -> float:
        """Bytes found / (bytes found + bytes put): what is not found is computed, and put."""
        return self.hit_bytes / max(1, self.hit_bytes + self.put_bytes)

    @property
    def byte_hit_ratio_by_tier(self) -> dict[str, float]:
        """The same, split by where the objects lay."""
        total = max(1, self.hit_bytes + self.put_bytes)
        return {tier: num_bytes / total for tier, num_bytes in self.hit_bytes_by_tier.items()}


class InspectDecisions(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The Conductor's latest decisions, newest first."""

    limit: int = 20
    request_id: str = ""
    """Only of requests whose id begins so."""
    num_candidates: int = 9
    """So many instances of each."""


class CandidateScore(Struct, frozen=True, kw_only=True, gc=False):
    """How one prefill instance would have done."""

    prefill: str
    local_blocks: int
    fetched_blocks: int
    queue_s: float
    transfer_s: float
    prefill_s: float
    ttft_s: float
    free_blocks: int = 0
    """KV memory beside the prompts that ran or waited there."""
    held_blocks: int = 0
    """Leading blocks that its local node had, in whatever tier, used or not."""
    loaded_blocks: int = 0
    """Of the local and fetched ones: below DRAM, to be loaded first."""
    recomputed_blocks: int = 0
    """Blocks that it could have had, and would have computed rather than loaded."""


class DecodeScore(Struct, frozen=True, kw_only=True, gc=False):
    """How one decode instance with room would have done."""

    decode: str
    tbt_s: float
    free_blocks: int
    """KV memory that nobody was promised."""


class Decision(Struct, frozen=True, kw_only=True, gc=False):
    """Why a request went where it went, or was rejected."""

    request_id: str
    age_s: float
    prompt_tokens: int
    prompt_blocks: int
    policy: str
    outcome: str
    """dispatched, rejected, or unavailable."""
    stage: str = "arrival"
    """When it was made: at arrival, or at decode, when the prefill had ended."""
    reason: str
    prefill: str
    decode: str
    best_match_blocks: int
    best_match_holder: str
    best_match_lower_blocks: int = 0
    """Of that match: below DRAM there."""
    expected_ttft_s: float
    expected_tbt_s: float
    candidates: list[CandidateScore]
    """The winner and the next eight, or as many as were asked for; and the one with the longest prefix of its own."""
    num_candidates: int = 0
    """There were so many."""
    tenant: str = ""
    """Whose request it was; empty where there are no API keys."""
    decodes: list[DecodeScore] = []
    """The one that was chosen and the next best."""


class Decisions(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Newest first."""

    decisions: list[Decision]
