"""Who belongs to the cluster: joining, heartbeats with load, leaving."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from mooncake_core.wire.messages.memory import SegmentDescriptor

Role = Literal["store", "prefill", "decode", "gateway"]


class SegmentOffer(Struct, frozen=True, kw_only=True, gc=False):
    """The memory a node contributes to the pool.

    The segment is `[directory: num_slots slots of slot_bytes][data: capacity_bytes from data_offset]`; offsets count
    from its start. `read` stays valid for the node's incarnation; `write` is exported anew at each fence.
    """

    capacity_bytes: int
    data_offset: int
    num_slots: int
    slot_bytes: int
    draining: bool = False
    """A master had the node drained, and has not taken that back."""
    read: SegmentDescriptor
    write: SegmentDescriptor
    tiers: list[str] = []
    """Kinds of the tiers below the segment, the first one read first."""
    write_through: bool = False
    """Objects go to the tiers as soon as they are put."""


class ModelOffer(Struct, frozen=True, kw_only=True, gc=False):
    """The model an instance serves, and what others must know to make block keys for it."""

    name: str
    fingerprint: bytes
    """Digest of weights, config, adapter, dtype, KV layout, TP shape, block_tokens: equal means interchangeable KV."""
    block_tokens: int
    block_bytes: int
    max_context_tokens: int
    vocab_size: int


class CostHint(Struct, frozen=True, kw_only=True, gc=False):
    """First guess of an instance's speed, refined from what it reports.

    prefill_s = prefill_base_s + prefill_per_token_s * new + prefill_per_token2_s * (total^2 - matched^2)
    decode step_s = step_base_s + step_per_sequence_s * batch + step_per_context_token_s * context tokens of the batch
    """

    prefill_base_s: float = 0.005
    prefill_per_token_s: float = 2e-4
    prefill_per_token2_s: float = 2e-8
    step_base_s: float = 0.005
    step_per_sequence_s: float = 5e-4
    step_per_context_token_s: float = 1e-7
    fetch_bytes_per_s: float = 1e9
    """From other nodes."""
    load_bytes_per_s: float = 1e9
    """From a node's tiers below DRAM to its DRAM."""


class InstanceOffer(Struct, frozen=True, kw_only=True, gc=False):
    """A prefill or decode worker's part in serving."""

    model: ModelOffer
    num_blocks: int
    """KV memory of the engine, in blocks."""
    local_node: str = ""
    """Name of the node on the instance's own host that it puts to first; empty when it has none."""
    cost: CostHint = CostHint()


class Join(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """A process asks the master to be a member. Repeating it is harmless; a new incarnation replaces the old one."""

    name: str
    role: Role
    host_id: str
    incarnation: int
    control_address: str
    """Where its own server answers, e.g. tcp://127.0.0.1:43211; empty when it has none."""
    pid: int
    local_to: str = ""
    """Of a local node: the instance on whose host it stands."""
    segment: SegmentOffer | None = None
    instance: InstanceOffer | None = None


class Joined(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The master's welcome."""

    term: int
    """Grows with each start of a master; messages about space carry it."""
    heartbeat_interval_s: float
    lease_s: float
    """A member silent for so long is taken for dead."""


class InstanceLoad(Struct, frozen=True, kw_only=True, gc=False):
    """What an instance reports of itself; times are seconds."""

    queued_requests: int = 0
    running_requests: int = 0
    queued_tokens: int = 0
    """Prompt tokens not yet computed (prefill)."""
    context_tokens: int = 0
    """Tokens whose KV the running batch holds (decode)."""
    free_blocks: int = 0
    num_blocks: int = 0
    step_s: float = 0.0
    """Mean duration of the latest engine steps."""


class Heartbeat(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """I am alive, and this is my load. Answered with Done, or MemberUnknown: join again."""

    name: str
    incarnation: int
    term: int
    load: InstanceLoad | None = None
    draining: bool = False
    """It finishes what it runs, and is to get no new work."""


class ChangeRole(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The master tells an instance: finish what you have, then join again in this role. Answered at once."""

    role: Literal["prefill", "decode"]


class SwitchRole(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """An operator asks the master to have an instance change its role."""

    name: str
    role: Literal["prefill", "decode"]


class Leave(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """I go in good order."""

    name: str
    incarnation: int
