"""The cluster's YAML as types. Each field's docstring is its documentation: `mooncake config schema` and `init` print it.

Sizes and durations are written with units in YAML ("4GiB", "30s"); here they are bytes and seconds. A default lives
here and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

Size = Annotated[int, Meta(ge=0, extra_json_schema={"x-unit": "bytes"})]
Duration = Annotated[float, Meta(ge=0, extra_json_schema={"x-unit": "seconds"})]
Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?$")]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: unknown keys are errors."""


class MasterConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name = "master"
    """Name of the process in logs and status."""
    host: str = "127.0.0.1"
    """Address it binds, and where the others find it: one of this host's own, no wildcard."""
    port: Port = 7801
    """Control port; 0 takes a free one, which is published in the run directory."""
    heartbeat_interval: Duration = 1.0
    """How often members report."""
    lease: Duration = 5.0
    """A member silent for so long is taken for dead."""
    admin_port: Port | None = 9003
    """HTTP port for operators and for clients made for upstream's store: metrics, keys, segments. 0 takes a free one, which
    is published in the run directory; null: none. With `auth` and no admin_key it is open to this host only, and changes
    nothing."""
    admin_key: str = ""
    """With one, the admin port wants `Authorization: Bearer KEY`."""


ApiKeys = str | list[str]


class TenantConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    max_concurrent: Count | None = None
    """The tenant's requests in progress; more are answered with 429. null: no limit of its own."""


class GatewayConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name = "gateway"
    """Name of the process in logs and status."""
    host: str = "127.0.0.1"
    """Address the HTTP API binds; 0.0.0.0 or "::" for all of the host's."""
    port: Port = 8000
    """HTTP port; 0 takes a free one."""
    request_timeout: Duration = 600.0
    """A request that has not ended after so long is ended; `timeout` in a request may ask for less."""
    patience: Duration = 20.0
    """How long a new request waits while nobody can take it (instances or the master are starting again), before 503."""
    max_body: Size = 8 << 20
    """Largest request body."""
    max_concurrent: Count = 1024
    """Requests in progress; more are answered with 503."""
    api_keys: dict[Name, ApiKeys] = {}
    """Tenant to its key or keys, such as `acme: ${ACME_KEY}`. With any, /v1 wants `Authorization: Bearer KEY`; tenants share
    no cache."""
    api_keys_file: str = ""
    """YAML file of more api_keys, readable by its owner only."""
    tenants: dict[Name, TenantConfig] = {}
    """Limits of tenants that have a key."""


class TierConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: str = "lmdb"
    """Tier plugin: lmdb (a folder on a local SSD), fsspec (s3://..., file://...)."""
    path: str = ""
    """Folder or URL; the node makes a folder of its own in it."""
    folder: Literal["node", "first-free"] = "node"
    """What that one is called: as the node; or by the first number that no other process on this host has taken, for nodes whose
    names change when they start again."""
    capacity: Size = 4 << 30
    """Most bytes it may take there; the oldest objects make room."""
    reserve: Size = 1 << 30
    """Space on the disk that is left to others."""
    sync_interval: Duration = 1.0
    """What is younger may be lost in a power cut."""
    write: Literal["evict", "through"] = "evict"
    """When objects go there: when DRAM has no room for them, or as soon as they are put (then to all tiers of the node)."""
    options: dict[str, Any] = {}
    """The tier's own options."""


class NodeConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    capacity: Size = 256 << 20
    """DRAM that the node contributes to the pool."""
    object_size: Size = 16 << 10
    """Smallest mean object size the directory has room for: capacity / object_size slots."""
    prefault: bool = True
    """Takes the memory from the machine soon after the start, beside the work, so that no put waits until the kernel has
    cleared it; else whenever something is written to a part for the first time."""
    data_port: Port = 0
    """Port of the data server; 0 takes a free one."""
    metrics_port: Port | None = None
    """HTTP port of `GET /metrics` for Prometheus, without a key: what was transferred, by transport and link. 0 takes a free
    one, which is published in the run directory; null: none."""
    drain_on_stop: bool = False
    """When it is told to stop (SIGTERM), first move its objects to nodes that have room, for drain_timeout at most."""
    tiers: list[TierConfig] = []
    """Where objects go that DRAM has no room for, and are read from; each object is written to all of them."""


class StoreConfig(NodeConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name = "store"
    """Name of the process; with count above 1 a number is appended: store-0, store-1."""
    count: Count = 1
    """How many of these run on the host."""
    host: str = "127.0.0.1"
    """Address it binds and is reached at."""


class CostConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long an engine's computations take, as `mooncake bench calibrate` measures and writes it."""

    prefill_base: Duration = 0.0
    """Of a prompt, whatever its length."""
    prefill_per_token: Duration = 0.0
    """Of each token that is not in place."""
    prefill_per_token2: Duration = 0.0
    """Attention: of the prompt's length squared, less the square of what is in place."""
    step_base: Duration = 0.0
    """Of a decode step, whatever its batch."""
    step_per_sequence: Duration = 0.0
    """Of each sequence in it."""
    step_per_context_token: Duration = 0.0
    """Of each token that one of them has."""
    fetch_bytes_per_s: Annotated[float, Meta(gt=0)] = 1e9
    """From other nodes."""
    load_bytes_per_s: Annotated[float, Meta(gt=0)] = 1e9
    """From a node's tiers below DRAM to its DRAM."""


class EngineConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: str = "torch"
    """Engine plugin: torch, mock."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """auto is float32 on CPU and the model's own type on a GPU."""
    kv_memory: Size = 256 << 20
    """Memory for the KV of running sequences."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """Compute threads; 0 shares the cores of the host among its instances."""
    max_batch: Count = 32
    """Sequences per decode step."""
    chunk_tokens: Count = 512
    """Most tokens computed in one step: longer prompts are prefilled in chunks of so many."""
    cost: CostConfig | None = None
    """How long computations take, by which the scheduler begins; null: what the engine itself says, which times some when it
    starts."""
    options: dict[str, Any] = {}
    """The engine's own options."""


class InstanceConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(pattern=r"^([a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?)?$")] = ""
    """Name of the process, empty for the role's name; with count above 1 a number is appended: prefill-0, prefill-1."""
    count: Count = 1
    """How many of these run on the host."""
    host: str = "127.0.0.1"
    """Address it binds and is reached at."""
    per_process: Count = 1
    """So many of `count` share one process, and so do their local nodes; for the mock engine."""
    data_port: Port = 0
    """Port of the data server; 0 takes a free one."""
    metrics_port: Port | None = None
    """HTTP port of `GET /metrics` for Prometheus, without a key: what was transferred, by transport and link. 0 takes a free
    one, which is published in the run directory; null: none."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """What computes."""
    local_node: NodeConfig | None = field(default_factory=NodeConfig)
    """The node on the instance's own host, in a process beside it; null for none."""


class PoolTenantConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    quota: Size | None = None
    """Bytes its objects may take on all nodes together, such as 4GiB; null: any number."""


class PoolConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    replicas: Count = 1
    """Copies of each block, on different nodes."""
    read_lease: Duration = 5.0
    """How long a located object is neither evicted nor overwritten."""
    writer_deadline: Duration = 30.0
    """A put that has not ended after so long is reclaimed, and its writer shut out (puts under way at its nodes fail)."""
    placement: Literal["free-ratio-first", "random", "local-first"] = "free-ratio-first"
    """Where a block goes that finds no room on the writer's local node, and where its further copies go, on different hosts if
    there are: to the node with the largest free share, to any, or to one of the writer's host first."""
    eviction: str = "lru"
    """Eviction policy plugin: lru, lfu, length-aware, s3-fifo, sieve."""
    high_watermark: Annotated[float, Meta(gt=0, le=1)] = 0.95
    """Eviction starts when a segment is fuller than this."""
    low_watermark: Annotated[float, Meta(ge=0, le=1)] = 0.85
    """Eviction goes on until a segment is emptier than this. What is read, or has a chain go on from it, stays."""
    promote_timeout: Duration = 2.0
    """How long a get waits for objects that lie in a tier only; what has not come then is a miss."""
    checksum: Literal["auto", "on", "off"] = "auto"
    """Verify each block's checksum on get. auto: when it came over a network (tcp), not from memory of the same host (shm). off:
    blocks get none on put either."""
    tenants: dict[Name, PoolTenantConfig] = {}
    """Who may use the pool under a name of its own, beside `default`; none: anybody may. Tenants share no objects."""


class FairnessConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    weights: dict[Name, Annotated[float, Meta(gt=0)]] = {}
    """Of tenants, such as `acme: 3`; one that is not named has 1. Tenants that ask for the same model have shares by weight."""
    reserve: Annotated[float, Meta(ge=0, lt=1)] = 0.2
    """A tenant that holds more than its share, of prefill work or of memory for decoding, is turned away where less than such a
    part of the objectives, or of an instance's memory, would be left for the others."""


class SchedulerConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    policy: str = "kvcache-centric"
    """Scheduling policy plugin."""
    balancing_threshold: Annotated[float, Meta(ge=1)] = 2.0
    """Fetch the best remote prefix when it is longer than the local one by more than this factor."""
    replicate: bool = True
    """What the pool has of a prompt is copied to the node of the instance that takes it, where that is longer than what lies
    there by more than `balancing_threshold`: so what is asked for much spreads by itself."""
    equal_within: Annotated[float, Meta(ge=0)] = 0.05
    """Instances whose expected times to first token differ by such a share at most do equally well: any of them is taken, so that
    one which seems to be a little faster does not get all."""
    spread_shared: bool = True
    """Beginnings of prompts that many requests share earn no credit until as many nodes have them as their share of the requests
    asks for: so one system prompt for all does not send all to one instance."""
    admission: str = "predictive"
    """Admission plugin, which turns requests away for an objective. none: nobody; baseline: decoding is looked at when a prefill
    has ended; early: and at arrival, as it is then; predictive: and as it will be when the prefill ends, if all decode for the
    same time; learned-lengths: the same, by the lengths of answers that were seen; headroom: all that is assigned counts,
    and the more have to be refused the sooner those who cost most."""
    ttft_slo: Duration | None = None
    """Objective: expected time to first token; null: none."""
    tbt_slo: Duration | None = None
    """Objective: expected time between tokens; null: none."""
    decode_time: Duration | None = None
    """How long admission predictive takes each request to decode; null: the mean of those that have ended."""
    headroom: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Admission headroom keeps such a share of the time between tokens free."""
    shed_weight: Annotated[float, Meta(ge=0)] = 64.0
    """Admission headroom: by how much more what a request costs beyond the mean counts where the objective is used up; times the
    share of requests that are refused."""
    fairness: FairnessConfig | None = field(default_factory=FairnessConfig)
    """Between tenants, under overload; null: who comes first is served first."""
    plan_roles: bool = False
    """Where one pool has too much to do for a while and the other little, by both objectives, an instance finishes what it has
    and joins in the other role; a pool that has lost all its instances gets one."""
    seed: int = 0
    """For breaking ties."""
    decisions: Count = 1000
    """How many decisions are kept for `mooncake inspect decisions`."""


class LocationConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    preferred: list[str]
    """NICs that carry what lies there."""
    secondary: list[str] = field(default_factory=list)
    """NICs that carry it when those have failed; what is in neither list never does."""


class TlsConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    certificate: str
    """File of this host's certificate, in PEM format, with those between it and the authority."""
    key: str
    """File of its key."""
    ca: str
    """File of the authority's certificate: who has one by it is a member of the cluster."""


class TransferConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    transports: list[str] = field(default_factory=lambda: ["shm", "tcp"])
    """Transport plugins, the preferred first; each transfer takes the first one that both ends share."""
    optional: list[str] = []
    """Those of them that a host may do without (as rdma, where not all hosts have RDMA devices): its log says so."""
    host_id: str = ""
    """Processes with the same id may share memory; empty: derived from the machine."""
    connections: Count = 2
    """Connections per peer."""
    timeout: Duration = 30.0
    """A transfer that has not ended after so long fails."""
    busy_poll: Duration = 0.0
    """How long (as 100us, at most 10ms) a thread looks for what comes next before it sleeps: it saves the time it takes to wake
    up, for the processor's. For hosts with cores to spare, and short answers. 0: never."""
    topology: dict[str, LocationConfig] = field(default_factory=dict)
    """Location of memory (as cpu:0, cuda:3) to its NICs; what is not named is read from sysfs (`mooncake inspect topology`)."""
    networks: list[str] = field(default_factory=list)
    """Networks (as 10.1.0.0/16) that carry tcp transfers as well: processes listen on the host's addresses in them, too."""
    tls: TlsConfig | None = None
    """Data connections over tcp are encrypted, and both ends show a certificate; on all hosts or on none. null: they are not."""
    weights: dict[str, Annotated[float, Meta(ge=0)]] = field(default_factory=dict)
    """Of networks (that of the peer's address, for tcp and RoCE) and of RDMA devices (as mlx5_0): one with 2 carries twice as
    much as with 1, which is the weight of all others; one with 0 nothing."""


class AuthConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key_file: str = ""
    """The cluster key (`mooncake auth init`); empty: $MOONCAKE_KEY_FILE."""


class ClusterConfig(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cluster: Name = "local"
    """Name of the cluster; its run directory is called so. Its processes join no master of another one."""
    model: str = "demo"
    """Hugging Face folder of the model; `demo` is the one that ships with the package."""
    served_name: str = ""
    """Name clients ask for; empty: the folder's name."""
    block_tokens: Annotated[int, Meta(ge=1, le=4096)] = 32
    """Tokens per KVCache block."""
    auth: AuthConfig | None = None
    """Needed where an address is not loopback, unless `insecure` says otherwise."""
    insecure: bool = False
    """Allow addresses that are not loopback without authentication."""
    master: MasterConfig = field(default_factory=MasterConfig)
    """The master: membership, the pool's index, the Conductor."""
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    """The OpenAI-compatible HTTP API, a process of its own beside the master."""
    store: list[StoreConfig] = []
    """Nodes that only contribute memory."""
    prefill: list[InstanceConfig] = field(default_factory=lambda: [InstanceConfig(name="prefill")])
    """Prefill instances."""
    decode: list[InstanceConfig] = field(default_factory=lambda: [InstanceConfig(name="decode")])
    """Decode instances."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """The distributed KVCache."""
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    """The Conductor."""
    drain_timeout: Duration = 10.0
    """How long a process that is told to stop (SIGTERM) finishes what it runs; what is left then goes on elsewhere, or
    ends. Where a whole cluster is stopped together (`mooncake start --role all`), 1.5s at most."""
    transfer: TransferConfig = field(default_factory=TransferConfig)
    """The Transfer Engine."""
