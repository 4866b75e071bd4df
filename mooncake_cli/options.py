"""Options that several commands share, and how they find the cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mooncake_core.config.load import Loaded
    from mooncake_core.config.schema import TlsConfig
    from mooncake_core.roles.run_directory import StartState
    from mooncake_core.wire.messages import Message
    from mooncake_core.wire.sync import SyncClient
    from mooncake_core.workload.trace import TraceSource

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M")
ASK_TIMEOUT_S = 5.0

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
tenant_option = click.option("--tenant", default="default", show_default=True, help="Whose keys these are.")


def config_options(function: F) -> F:
    """-c and --set."""
    function = click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a value.")(
        function
    )
    return click.option("-c", "--config", "config_path", type=click.Path(path_type=Path), help="The cluster's YAML.")(
        function
    )


def cluster_options(function: F) -> F:
    """How to name a running cluster: -c, --cluster, or neither when only one runs here."""
    function = click.option("--cluster", help="Name of a cluster that runs on this host.")(function)
    return config_options(function)


def trace_options(function: F) -> F:
    """How a trace is read: --format, --block-tokens, --answer-tokens; for `trace_source`."""
    function = click.option(
        "--answer-tokens",
        type=click.IntRange(1),
        help="Length of answers where a trace has none (lmcache).  [default: 128]",
    )(function)
    function = click.option(
        "--block-tokens",
        type=click.IntRange(1),
        help="The trace's blocks have so many tokens, not what its format says.",
    )(function)
    return click.option(
        "--format",
        "format_name",
        help="Of the trace; `mooncake trace formats` lists them.  [default: what it looks like]",
    )(function)


def trace_source(
    trace: str, format_name: str | None, block_tokens: int | None, answer_tokens: int | None
) -> TraceSource:
    """What a trace's argument and `trace_options` say.

    Raises:
        UsageError: there is no such format.
    """
    from mooncake_core.workload.formats import ANSWER_TOKENS, ReadSettings
    from mooncake_core.workload.trace import TraceSource, named

    if format_name:
        named(format_name)
    settings = ReadSettings(block_tokens=block_tokens, answer_tokens=answer_tokens or ANSWER_TOKENS)
    return TraceSource(trace, format_name, settings)


def load(config_path: Path | None, overrides: tuple[str, ...] = ()) -> Loaded:
    """The configuration: -c, else $MOONCAKE_CONFIG.

    Raises:
        UsageError: neither was given.
    """
    from mooncake_core.config.load import load_config

    return load_config(config_file(config_path), overrides=overrides, environ=os.environ)


def config_file(config_path: Path | None) -> Path:
    """The file of the configuration: -c, else $MOONCAKE_CONFIG.

    Raises:
        UsageError: neither was given.
    """
    from mooncake_core.errors import UsageError

    path = config_path or (Path(found) if (found := os.environ.get("MOONCAKE_CONFIG")) else None)
    if path is None:
        raise UsageError("no configuration: give -c FILE or set MOONCAKE_CONFIG (`mooncake config init` writes one)")
    return path


@dataclass(frozen=True, slots=True)
class Running:
    """Where a running cluster is reached."""

    name: str
    master_address: str
    gateway_url: str
    key_file: str | None
    admin_url: str = ""
    tls: TlsConfig | None = None
    weights: Mapping[str, float] = field(default_factory=dict)

    def url(self) -> str:
        """Of its gateway.

        Raises:
            PeerUnreachable: no gateway of it is known here.
        """
        from mooncake_core.errors import PeerUnreachable

        if not self.gateway_url:
            raise PeerUnreachable(f"no address of a gateway of cluster {self.name} is known here: name one with --url")
        return self.gateway_url

    def client(self) -> SyncClient:
        """To its master. Calls raise ConfigError where the master there is of another cluster."""
        from mooncake_core.roles.context import load_key
        from mooncake_core.wire.sync import SyncClient

        key = load_key(self.key_file)
        return SyncClient(self.master_address, name="mooncake-cli", key=key, cluster=self.name)


def find_running(config_path: Path | None, overrides: tuple[str, ...], cluster: str | None) -> Running:
    """The cluster a command is about: that of the YAML, of the name, or the only one that runs here.

    Raises:
        UsageError: several run here and none was named, or two different ones were.
        PeerUnreachable: none runs here.
    """
    from mooncake_core.address import HostPort, is_wildcard
    from mooncake_core.errors import PeerUnreachable
    from mooncake_core.roles import run_directory

    loaded = _named_config(config_path, overrides, cluster)
    name = cluster or (loaded.config.cluster if loaded else None)
    states = run_directory.find(name)
    gateway_url = next((state.gateway_url for state in states if state.gateway_url), "")
    tls, weights = _data_plane(loaded, states)
    for state in states:
        if any(process.role == "master" for process in state.processes) or not loaded:
            return Running(
                state.cluster,
                state.master_address,
                gateway_url,
                _key(state.key_file),
                state.admin_url,
                tls,
                weights,
            )
    if loaded is None:
        raise PeerUnreachable(
            f"no cluster{f' called {name}' if name else ''} runs on this host: start one with "
            "`mooncake start --role all -c configs/local.yaml`, or name one elsewhere with -c FILE"
        )
    config = loaded.config
    if not config.master.port:
        raise PeerUnreachable(
            f"cluster {config.cluster} does not run on this host, and has no fixed port where it could be asked: start "
            f"it with `mooncake start --role all -c {loaded.path}`, or set master.port"
        )
    gateway = HostPort(config.gateway.host, config.gateway.port)
    return Running(
        config.cluster,
        HostPort(config.master.host, config.master.port).url,
        f"http://{gateway}" if gateway.port and not is_wildcard(gateway.host) else "",
        config.auth.key_file if config.auth else None,
        tls=tls,
        weights=weights,
    )


def _data_plane(loaded: Loaded | None, states: Sequence[StartState]) -> tuple[TlsConfig | None, Mapping[str, float]]:
    """What the YAML says of TLS and weights, or what a process of the cluster was started with."""
    if loaded:
        return loaded.config.transfer.tls, loaded.config.transfer.weights
    tls = next((state.tls for state in states if state.tls), None)
    return tls, next((state.weights for state in states if state.weights), {})


def cluster_name(config_path: Path | None, overrides: tuple[str, ...], cluster: str | None) -> str | None:
    """Name of the cluster that a command is about; None for the only one that runs here."""
    loaded = _named_config(config_path, overrides, cluster)
    return loaded.config.cluster if loaded else cluster


def _named_config(config_path: Path | None, overrides: tuple[str, ...], cluster: str | None) -> Loaded | None:
    """The configuration that was named: by -c; or by $MOONCAKE_CONFIG, where --cluster does not say otherwise.

    Raises:
        UsageError: -c is of another cluster than --cluster.
    """
    from mooncake_core.errors import UsageError

    if not config_path and (cluster or not os.environ.get("MOONCAKE_CONFIG")):
        return None
    loaded = load(config_path, overrides)
    if cluster and cluster != loaded.config.cluster:
        raise UsageError(
            f"{config_path} is of cluster {loaded.config.cluster}, --cluster says {cluster}: give one of them"
        )
    return loaded


def _key(key_file: str) -> str | None:
    return key_file or None


def ask(
    message: Message, reply_type: type[M], config_path: Path | None, overrides: tuple[str, ...], cluster: str | None
) -> M:
    """What the cluster's master answers."""
    client = find_running(config_path, overrides, cluster).client()
    try:
        return client.call(message, reply_type, timeout_s=ASK_TIMEOUT_S)
    finally:
        client.close()
