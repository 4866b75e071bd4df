"""The YAML: every problem at once and in its place; every value with its origin."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooncake_core.config.build import readable
from mooncake_core.config.documents import commented_yaml, descriptions, json_schema
from mooncake_core.config.load import Loaded, load_config
from mooncake_core.config.processes import local_node_name, processes
from mooncake_core.config.schema import ClusterConfig, InstanceConfig, PoolConfig
from mooncake_core.errors import ConfigError

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.yaml"))


def load(tmp_path: Path, text: str, *overrides: str, **environ: str) -> Loaded:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_config(path, overrides=overrides, environ=environ)


def problems(tmp_path: Path, text: str, *overrides: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides, **environ)
    return [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_loads_and_says_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert processes(load_config(path, environ={}).config)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "").config == ClusterConfig()


def test_units_are_understood(tmp_path: Path) -> None:
    config = load(tmp_path, "pool: {read_lease: 250ms}\nstore: [{capacity: 1.5GiB}, {name: b, capacity: 4096}]").config
    assert config.pool.read_lease == 0.25
    assert [store.capacity for store in config.store] == [3 << 29, 4096]


def test_checksums_are_auto_on_or_off_and_truth_values_are_told_so(tmp_path: Path) -> None:
    assert load(tmp_path, "").config.pool.checksum == "auto"
    assert load(tmp_path, "pool: {checksum: on}").config.pool.checksum == "on"
    assert load(tmp_path, "", "pool.checksum=off").config.pool.checksum == "off"
    assert problems(tmp_path, "pool: {checksum: true}") == [
        "c.yaml:1:18: pool.checksum: expected one of auto, on, off, got true"
    ]


def test_the_pools_tenants_have_quotas_or_none(tmp_path: Path) -> None:
    tenants = load(tmp_path, "pool: {tenants: {acme: {quota: 4GiB}, zoo: {}}}").config.pool.tenants
    assert {name: tenant.quota for name, tenant in tenants.items()} == {"acme": 4 << 30, "zoo": None}
    assert problems(tmp_path, "pool: {tenants: {Acme: {quota: lots}}}")


def test_weights_are_of_tenants_that_have_a_key(tmp_path: Path) -> None:
    text = "gateway: {api_keys: {acme: secret}}\nscheduler: {fairness: {weights: {acme: 3, zoo: 1}}}"
    (problem,) = problems(tmp_path, text)
    assert problem.startswith("c.yaml:2:48: scheduler.fairness.weights.zoo: expected a tenant with a key")
    fairness = load(tmp_path, text.replace(", zoo: 1", "")).config.scheduler.fairness
    assert fairness is not None
    assert fairness.weights == {"acme": 3.0}


def test_all_problems_come_at_once_each_in_its_place(tmp_path: Path) -> None:
    text = """cluster: Local
modle: demo
store:
  - capacity: 12 potatoes
prefill: {a: 1}
master: {port: 99999, hots: x}
pool: {checksum: 1, high_watermark: 2}
decode:
  - engine: {dtype: float8, kv_memory: -1}
"""
    assert problems(tmp_path, text) == [
        'c.yaml:1:10: cluster: expected a name of lower-case letters, digits, dots and hyphens, got "Local"',
        "c.yaml:2:1: modle: unknown key; did you mean model?",
        "c.yaml:4:15: store.0.capacity: expected a size like 4GiB, 512MB or 65536, got '12 potatoes'",
        "c.yaml:5:10: prefill: expected a list, got a mapping",
        "c.yaml:6:16: master.port: expected 65535 or less, got 99999",
        "c.yaml:6:23: master.hots: unknown key; did you mean host?",
        "c.yaml:7:18: pool.checksum: expected one of auto, on, off, got 1",
        "c.yaml:7:37: pool.high_watermark: expected 1 or less, got 2",
        'c.yaml:9:21: decode.0.engine.dtype: expected one of auto, float32, float16, bfloat16, got "float8"',
        "c.yaml:9:40: decode.0.engine.kv_memory: expected a size of 0 or more, got -1",
    ]


def test_wrong_types_and_wrong_names_come_at_once(tmp_path: Path) -> None:
    text = """prefill:
  - count: none
  - engine: {kind: trch}
transfer: {transports: [5.5, tpc], conections: 4}
master: {host: 10.0.0.1}
pool: {eviction: lruu}
"""
    assert problems(tmp_path, text, "scheduler.policy=x", "scheduler.seed=y") == [
        'c.yaml:2:12: prefill.0.count: expected a whole number, got "none"',
        "c.yaml:3:20: prefill.1.engine.kind: expected an installed engine (mock, torch), got trch; did you mean torch?",
        "c.yaml:4:25: transfer.transports.0: expected an installed transport (rdma, shm, tcp), got 5.5",
        "c.yaml:4:30: transfer.transports.1: expected an installed transport (rdma, shm, tcp), got tpc; did you mean tcp?",
        "c.yaml:4:36: transfer.conections: unknown key; did you mean connections?",
        "c.yaml:5:16: master.host: expected a loopback address, got 10.0.0.1: others can reach it, so give auth.key_file "
        "(`mooncake auth init` writes a key), or say insecure: true",
        "c.yaml:6:18: pool.eviction: expected an installed eviction (length-aware, lfu, lru, s3-fifo, sieve), got lruu; did you "
        "mean lru?",
        '--set scheduler.seed=y: scheduler.seed: expected a whole number, got "y"',
        "--set scheduler.policy=x: scheduler.policy: expected an installed policy (cache-aware, kvcache-centric, "
        "least-loaded, random, round-robin, shortest-queue), got x",
    ]


def test_what_a_section_must_have_is_asked_for_beside_all_else(tmp_path: Path) -> None:
    text = "transfer: {tls: {certificate: a}, connections: 0}\nmaster: {port: 99999}\ngateway: {port: 7801}\n"
    assert problems(tmp_path, text) == [
        "c.yaml:1:17: transfer.tls.key: expected text, got nothing",
        "c.yaml:1:17: transfer.tls.ca: expected text, got nothing",
        "c.yaml:1:48: transfer.connections: expected 1 or more, got 0",
        "c.yaml:2:16: master.port: expected 65535 or less, got 99999",
    ]
    assert problems(tmp_path, "transfer: {tls: {}, topology: {'cpu:0': {secondary: [a]}}}") == [
        "c.yaml:1:17: transfer.tls.certificate: expected text, got nothing",
        "c.yaml:1:17: transfer.tls.key: expected text, got nothing",
        "c.yaml:1:17: transfer.tls.ca: expected text, got nothing",
        "c.yaml:1:41: transfer.topology.cpu:0.preferred: expected a list, got nothing",
    ]


def test_what_a_section_must_have_and_is_given_wrongly_is_said_once(tmp_path: Path) -> None:
    assert problems(tmp_path, "transfer: {tls: {certificate: a, key: [b], ca: c}}") == [
        "c.yaml:1:39: transfer.tls.key: expected text, got a list"
    ]
    assert problems(tmp_path, "transfer: {topology: {'cpu:0': {preferred: mlx5_0}}}") == [
        'c.yaml:1:44: transfer.topology.cpu:0.preferred: expected a list, got "mlx5_0"'
    ]


def test_a_flag_that_gives_a_part_of_what_a_section_must_have_is_named(tmp_path: Path) -> None:
    given = "--set transfer.tls.certificate=x"
    assert problems(tmp_path, "", "transfer.tls.certificate=x") == [
        f"{given}: transfer.tls.key: expected text, got nothing",
        f"{given}: transfer.tls.ca: expected text, got nothing",
    ]


def test_nobody_looks_for_seconds_who_means_microseconds(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "transfer: {busy_poll: 100}")
    expected = "expected a duration of at most 10ms, as 100us, got 100s"
    assert problem == f"c.yaml:1:23: transfer.busy_poll: {expected}"
    assert load(tmp_path, "transfer: {busy_poll: 10ms}").config.transfer.busy_poll == 0.01


def test_networks_are_networks_and_want_a_key(tmp_path: Path) -> None:
    text = "transfer: {networks: [10.1.0.0/16, eth1, 127.0.0.0/8]}\n"
    assert problems(tmp_path, text) == [
        "c.yaml:1:23: transfer.networks.0: expected a key where others can reach memory over 10.1.0.0/16: give auth.key_file "
        "(`mooncake auth init` writes a key), or say insecure: true",
        "c.yaml:1:36: transfer.networks.1: expected a network like 10.1.0.0/16 or fd00:1::/64, got 'eth1'",
    ]
    fixed = text.replace(", eth1", "") + "insecure: true\n"
    assert load(tmp_path, fixed).config.transfer.networks == ["10.1.0.0/16", "127.0.0.0/8"]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("insecure: 1\nmaster: {host: 10.0.0.1}", "insecure"),
        ("auth: x\nmaster: {host: 10.0.0.1}", "auth"),
        ("gateway: {port: 70000}\nmaster: {port: 8000}", "gateway.port"),
        ("gateway: {port: 70000}\nmaster: {admin_port: 8000}", "gateway.port"),
        ("store: [{name: B}, {}]", "store.0.name"),
        ("store: [x, {name: b, data_port: 5}]\nmaster: {port: 6}", "store.0"),
        ("transfer: {transports: [{}]}", "transfer.transports.0"),
        ("gateway: {api_keys: {a: {}}, tenants: {a: {}}}", "gateway.api_keys.a"),
        ("gateway: {api_keys: {a: [{}]}}", "gateway.api_keys.a.0"),
        ("prefill: [{per_process: 2, count: 2, engine: {kind: []}}]", "prefill.0.engine.kind"),
        ("pool: {low_watermark: 0.96, high_watermark: x}", "pool.high_watermark"),
        ("cluster: ${NOPE}", "cluster"),
    ],
)
def test_what_follows_from_a_wrong_value_is_not_said(tmp_path: Path, text: str, path: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.split(": ")[1] == path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("master: {host: 0.0.0.0}", "master.host"),
        ('store: [{host: "::"}]', "store.0.host"),
        ('prefill: [{}, {name: p, host: "[::]"}]', "prefill.1.host"),
        ('decode: [{host: "*"}]', "decode.0.host"),
    ],
)
def test_a_wildcard_is_no_address_to_be_reached_at(tmp_path: Path, text: str, path: str) -> None:
    (problem,) = problems(tmp_path, f"{text}\ninsecure: true")
    assert f": {path}: expected the address at which the others reach it, got " in problem
    assert "give this host's own address or name" in problem


def test_the_gateway_may_listen_everywhere(tmp_path: Path) -> None:
    assert load(tmp_path, "gateway: {host: 0.0.0.0}\ninsecure: true").config.gateway.host == "0.0.0.0"
    (problem,) = problems(tmp_path, "gateway: {host: 0.0.0.0}")
    assert "gateway.host: expected a loopback address" in problem


def test_a_wrong_item_leaves_the_numbers_of_the_others(tmp_path: Path) -> None:
    found = problems(tmp_path, "store: [x, {name: b, data_port: 7801}]")
    assert [problem.split(": ")[:2] for problem in found] == [
        ["c.yaml:1:9", "store.0"],
        ["c.yaml:1:33", "store.1.data_port"],
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "c.yaml:1:5: not valid YAML: expected a value, got the end of the file"),
        ("master: {}\nmaster: {}", "c.yaml:2:1: master: expected each key once, got it again after c.yaml:1:1"),
        ("- a", "c.yaml:1:1: expected a mapping, got a list"),
        ("master: 5", "c.yaml:1:9: master: expected a mapping, got 5"),
        ("model: ${NOPE}", "c.yaml:1:8: model: expected the environment variable NOPE to be set"),
        (
            "scheduler: {plan_roles: true, ttft_slo: 1s}",
            "c.yaml:1:25: scheduler.plan_roles: expected both objectives, by which loads are known: scheduler.ttft_slo and "
            "scheduler.tbt_slo",
        ),
        ("pool: {low_watermark: 0.99}", "c.yaml:1:23: pool.low_watermark: expected less than high_watermark (0.95)"),
        (
            "transfer: {optional: [rdma]}",
            "c.yaml:1:23: transfer.optional.0: expected one of the transports (shm, tcp), got rdma",
        ),
        ("store: [{capacity: 0}]", "c.yaml:1:20: store.0.capacity: expected room for objects, got none"),
        ("master: {host: 10.0.0.1}", "c.yaml:1:16: master.host: expected a loopback address, got 10.0.0.1"),
        ("scheduler: {policy: kvcache}", "c.yaml:1:21: scheduler.policy: expected an installed policy"),
        ("gateway: {port: 7801}", "c.yaml:1:17: gateway.port: expected ports to be used once per host, got 7801"),
        ("master: {port: 8000}", "c.yaml:1:16: gateway.port: expected ports to be used once per host, got 8000"),
        (
            "master: {admin_port: 8000}",
            "c.yaml:1:22: master.admin_port: expected ports to be used once per host, got 8000",
        ),
        (
            "store: [{data_port: 5001, metrics_port: 5001}]",
            "c.yaml:1:41: store.0.metrics_port: expected ports to be used once per host, got 5001 for store",
        ),
        (
            "transfer: {weights: {10.1.0.0/33: 1}}",
            "c.yaml:1:35: transfer.weights.10.1.0.0/33: expected a network like 10.1.0.0/16, or the name of an RDMA device",
        ),
        ("transfer: {weights: {mlx5_0: -1}}", "c.yaml:1:30: transfer.weights.mlx5_0: expected"),
        ("master: {admin_port: x}", 'c.yaml:1:22: master.admin_port: expected a whole number, got "x"'),
        ("? [a]\n: b", "c.yaml:1:3: expected a name before the colon, got a list or a mapping"),
        ("store: [{}, {}]", "c.yaml:1:13: store.1: expected each process to have a name of its own, got store twice"),
    ],
)
def test_each_kind_of_problem_is_located(tmp_path: Path, text: str, expected: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("text", "line", "column", "expected"),
    [
        (
            "a: b: c",
            1,
            5,
            "got a colon where no key can stand; check the indentation, and put a text with a colon in quotes",
        ),
        ("master:\n\tport: 1", 2, 1, "got a tab as indentation; use spaces"),
        ("a: @x", 1, 4, "got `@`, with which no value begins; put the value in quotes"),
        (
            "a: 1\nb: 'x",
            2,
            6,
            "got the end of the file, within the quoted text that begins at line 2, column 4; close it",
        ),
        ("- a\nb: 1", 2, 1, "expected another list item, got a key, within the list that begins at line 1, column 1"),
        (
            "a: {x: 1",
            1,
            9,
            "expected ',' or '}', got the end of the file, within the mapping that begins at line 1, column 4",
        ),
        (
            "m: {host: ${H}}",
            1,
            12,
            "expected ',' or '}', got `{`, within the mapping that begins at line 1, column 4; within {}",
        ),
        ("a: [1, 2\nb: 3", 2, 2, "expected ',' or ']', got `:`, within the list that begins at line 1, column 4"),
        ("a: 1\n---\nb: 2", 2, 1, "expected one document, got a second one"),
        ("a: &x 1\nb: &x 2", 2, 4, "got a duplicate anchor 'x', which line 1 has already"),
        ("a: *x", 1, 4, "got undefined alias 'x'"),
        ('a: "\\q"', 1, 6, "got unknown escape character 'q', within the quoted text that begins at line 1, column 4"),
        ("a: é\nb: \x01", 2, 4, "expected text, got the control character 0x01; remove it"),
    ],
)
def test_what_is_no_yaml_is_explained(tmp_path: Path, text: str, line: int, column: int, expected: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(f"c.yaml:{line}:{column}: not valid YAML: {expected}")


def test_environment_variables_are_filled_in_and_typed(tmp_path: Path) -> None:
    text = 'master: {port: "${PORT:-5}"}\ngateway: {port: "6"}\nmodel: /m/${NAME}-x'
    assert problems(tmp_path, text, NAME="n") == ['c.yaml:2:17: gateway.port: expected a whole number, got "6"']
    config = load(tmp_path, text.replace('"6"', "6"), NAME="n", PORT="0").config
    assert (config.master.port, config.gateway.port, config.model) == (0, 6, "/m/n-x")


@pytest.mark.parametrize(
    ("text", "model"), [("010", "010"), ("12:30", "12:30"), ("yes", "yes"), ("1e3", "1e3"), ("0x1F", "0x1F")]
)
def test_values_are_what_people_mean(tmp_path: Path, text: str, model: str) -> None:
    assert load(tmp_path, f"model: {text}").config.model == model


def test_overrides_lie_on_top(tmp_path: Path) -> None:
    text = "decode: [{name: d}]\nmodel: a"
    loaded = load(tmp_path, text, "decode.0.engine.device=cpu", "model=b", "pool.replicas=2", "prefill.0.count=3")
    config = loaded.config
    assert (config.decode[0].name, config.decode[0].engine.device) == ("d", "cpu")
    assert (config.model, config.pool.replicas, config.prefill[0].count) == ("b", 2, 3)
    assert loaded.origin("model") == "--set model=b"
    assert loaded.origin("decode.0.name").endswith("c.yaml:1:17")
    assert loaded.origin("pool.eviction") == "default"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a", "--set a: expected PATH=VALUE"),
        ("gateway.port=x", '--set gateway.port=x: gateway.port: expected a whole number, got "x"'),
        ("prefill.4.name=x", "--set prefill.4.name=x: prefill.4.name: there is no element 4 of prefill"),
        ("model.x=1", "--set model.x=1: model.x: model is no mapping"),
        ("model=${NOPE}", "--set model=${NOPE}: model: expected the environment variable NOPE to be set"),
        ("store=[", "--set store=[: store: not valid YAML: expected a value, got the end of the file"),
        ("gatway.port=1", "--set gatway.port=1: gatway: unknown key; did you mean gateway?"),
    ],
)
def test_wrong_overrides_are_named(tmp_path: Path, override: str, expected: str) -> None:
    assert problems(tmp_path, "model: a", override)[0].startswith(expected)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.yaml: cannot be read: No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_counts_and_local_nodes_are_spelled_out() -> None:
    config = ClusterConfig(prefill=[InstanceConfig(count=2), InstanceConfig(name="solo", local_node=None)], decode=[])
    specs = processes(config)
    assert [(spec.name, spec.role, spec.local_to) for spec in specs] == [
        ("master", "master", ""),
        ("gateway", "gateway", ""),
        ("prefill-0", "prefill", ""),
        ("prefill-0-node", "store", "prefill-0"),
        ("prefill-1", "prefill", ""),
        ("prefill-1-node", "store", "prefill-1"),
        ("solo", "prefill", ""),
    ]
    assert [local_node_name(spec) for spec in specs if spec.role == "prefill"] == [
        "prefill-0-node",
        "prefill-1-node",
        "",
    ]


def test_instances_that_share_a_process_share_one_for_their_nodes(tmp_path: Path) -> None:
    entry = "prefill: [{count: 3, per_process: 2, engine: {kind: mock}}]\ndecode: []"
    specs = processes(load(tmp_path, entry).config)
    assert [(spec.name, spec.process) for spec in specs if spec.role in ("prefill", "store")] == [
        ("prefill-0", "prefill-group-0"),
        ("prefill-0-node", "prefill-group-0-node"),
        ("prefill-1", "prefill-group-0"),
        ("prefill-1-node", "prefill-group-0-node"),
        ("prefill-2", "prefill-group-1"),
        ("prefill-2-node", "prefill-group-1-node"),
    ]
    (problem,) = problems(tmp_path, entry.replace("mock", "torch"))
    assert problem.startswith("c.yaml:1:35: prefill.0.per_process: expected 1 for engine torch")


def test_the_written_defaults_load_back(tmp_path: Path) -> None:
    text = commented_yaml(ClusterConfig())
    assert load(tmp_path, text).config == ClusterConfig()
    assert "# Copies of each block, on different nodes." in text


@pytest.mark.parametrize(
    ("duration", "shown"), [("1us", "1us"), ("0.25", "250ms"), ("90s", "90s"), ("10m", "10m"), ("1234567s", 1234567.0)]
)
def test_durations_are_shown_so_that_they_can_be_read_again(tmp_path: Path, duration: str, shown: object) -> None:
    config = load(tmp_path, f"drain_timeout: {duration}").config
    assert readable(config)["drain_timeout"] == shown
    assert load(tmp_path, commented_yaml(config)).config == config


def test_every_key_is_described() -> None:
    schema = json_schema()
    for name, section in schema["$defs"].items():
        for key, entry in section.get("properties", {}).items():
            assert entry["description"], f"{name}.{key} has no docstring"
    assert descriptions(PoolConfig)["replicas"] == "Copies of each block, on different nodes."
