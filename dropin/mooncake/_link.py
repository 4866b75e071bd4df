"""A connection to a pool, whose failures are numbers."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeVar, cast, get_args

from mooncake._codes import Code, code_of
from mooncake._network import (
    OPTIONAL,
    busy_poll_s,
    is_trusted,
    key_file,
    split_hostname,
    tls_config,
    transports_of,
    weights,
)
from mooncake._offload import offload_tiers
from mooncake._replicas import ReplicateConfig, node_name
from mooncake._segment import attach, await_writable, free_port
from mooncake._settings import Settings
from mooncake_core.address import HostPort, is_loopback, parse_host_port
from mooncake_core.config.schema import TierConfig
from mooncake_core.errors import ConfigError, MooncakeError, ObjectExists
from mooncake_core.roles.attached_node import AttachedNode
from mooncake_core.roles.context import load_key, tls_files
from mooncake_core.store.blocking import BlockingStore, StoreSettings
from mooncake_core.store.checksums import Choice
from mooncake_core.store.client import Pieces, PutObject, PutOptions
from mooncake_core.store.reading import Destination
from mooncake_core.transfer.host import default_host_id
from mooncake_core.wire.messages.inspection import GetStatus, Status

HELLO_S: Final = 10.0

T = TypeVar("T")

_log = logging.getLogger("mooncake.store")


class Link:
    """The pool, and the segments contributed to it. Any thread."""

    def __init__(self, settings: Settings) -> None:
        """Connects.

        Raises:
            MooncakeError: it cannot; says why.
        """
        tiers = offload_tiers(settings)
        self._master = _address(settings.master_server_addr)
        self._host, self._wanted_port = split_hostname(settings.local_hostname)
        self._key_file = key_file()
        self._tls = tls_config(
            {"certificate": settings.tls_certificate, "key": settings.tls_key, "ca": settings.tls_ca}
        )
        self._weights = weights(settings.rdma_devices)
        self._busy_poll_s = busy_poll_s()
        self._bind = self._bind_host() if settings.global_segment_size else ""
        self._nodes: dict[str, AttachedNode] = {}
        self._lock = threading.Lock()
        self.hostname = str(HostPort(self._host, self._wanted_port or free_port("", 0)))
        self.tenant = settings.tenant_id
        self.transports = transports_of(settings.protocol)
        self.store = self._connect()
        try:
            self.ping()
            if settings.global_segment_size:
                self.hostname = self.contribute(settings.global_segment_size, tiers)
        except BaseException:
            self.close()
            raise

    def _connect(self) -> BlockingStore:
        return BlockingStore(
            StoreSettings(
                master_address=self._master.url,
                name=f"store-{os.getpid()}",
                host_id=default_host_id(),
                tenant=self.tenant,
                transports=self.transports,
                optional=OPTIONAL,
                key=load_key(self._key_file),
                checksum=_checksum(),
                busy_poll_s=self._busy_poll_s,
                tls=tls_files(self._tls),
                weights=self._weights,
            )
        )

    def ping(self) -> None:
        """Asks the master whether it is there."""
        self.store.ask(GetStatus(), Status, timeout_s=HELLO_S)

    def contribute(self, num_bytes: int, tiers: Sequence[TierConfig] = ()) -> str:
        """Adds a segment to the pool, with what is below its memory; returns its `host:port`, by which it is preferred and taken
        away again."""
        self._bind = self._bind or self._bind_host()
        port = free_port(self._bind, self._wanted_port)
        segment = str(HostPort(self._host, port))
        name = node_name(segment)
        node = attach(
            name,
            capacity_bytes=num_bytes,
            host=self._bind,
            data_port=port,
            master=self._master.url,
            transports=self.transports,
            key_file=self._key_file,
            tls=self._tls,
            weights=self._weights,
            tiers=tiers,
            busy_poll_s=self._busy_poll_s,
        )
        with self._lock:
            self._nodes[segment] = node
        try:
            await_writable(self.store, name)
        except BaseException:
            self.withdraw(segment)
            raise
        return segment

    def withdraw(self, segment: str) -> bool:
        """Takes a segment away; whether it was one of this store's."""
        with self._lock:
            node = self._nodes.pop(segment, None)
        if node is not None:
            node.close()
        return node is not None

    def put(
        self, keys: Sequence[str], values: Sequence[Pieces], config: ReplicateConfig, *, upsert: bool = False
    ) -> list[int]:
        """Puts objects; a code each. One that is there already is no failure: it has the bytes of its key."""
        groups = config.group_ids or [""] * len(keys)
        objects = [
            PutObject(key=key, pieces=pieces, group=group)
            for key, pieces, group in zip(keys, values, groups, strict=True)
        ]
        codes = self.store.put(objects, replicas=max(1, config.replica_num), options=put_options(config, upsert=upsert))
        return [Code.OK if code == ObjectExists.code else code_of(code) for code in codes]

    def get(self, keys: Sequence[str], destination: Destination) -> list[int]:
        """Reads objects to where `destination` says; bytes read, or a code each."""
        sizes = [0] * len(keys)

        def placed(index: int, size_bytes: int) -> Pieces | None:
            sizes[index] = size_bytes
            return destination(index, size_bytes)

        codes = self.store.get(keys, placed)
        return [code_of(code) if code else size for code, size in zip(codes, sizes, strict=True)]

    def close(self) -> None:
        """Takes the segments away, ends calls under way. Idempotent."""
        with self._lock:
            nodes, self._nodes = list(self._nodes.values()), {}
        for node in nodes:
            node.close()
        self.store.close()

    def _bind_host(self) -> str:
        """Where the helper listens: on this machine alone where the whole cluster is on it.

        Raises:
            ConfigError: others could reach it, and there is no key.
        """
        if is_loopback(self._master.host):
            return "127.0.0.1"
        if self._key_file is None and not is_trusted():
            raise ConfigError(
                f"the segment of {self._host} would be open to everybody who can reach it: set MOONCAKE_KEY_FILE "
                "(`mooncake auth init` writes a key), or MOONCAKE_INSECURE=true where the network is trusted"
            )
        try:
            return str(socket.getaddrinfo(self._host, None)[0][4][0])
        except OSError as error:
            raise ConfigError(f"local_hostname {self._host} is no host that can be found: {error}") from error


def put_options(config: ReplicateConfig, *, upsert: bool = False) -> PutOptions:
    """A config in the pool's words."""
    preferred = [config.preferred_segment, *config.preferred_segments]
    return PutOptions(
        preferred_nodes=[node_name(segment) for segment in preferred if segment],
        same_node=config.prefer_alloc_in_same_node,
        upsert=upsert,
        hard_pin=config.with_hard_pin or None,
        soft_pin_s=config.soft_pin_s,
    )


class Linked:
    """What all parts of a store share: its link, once it is set up, and the way failures become numbers."""

    def __init__(self) -> None:
        self._link: Link | None = None

    def _ask(self, work: Callable[[Link], T], failed: Callable[[int], T]) -> T:
        """The outcome of `work`; that of `failed`, given a code, where there is no link or it fails."""
        link = self._link
        if link is None:
            _log.error("the store is not set up: call setup() first")
            return failed(Code.INVALID_PARAMS)
        try:
            return work(link)
        except MooncakeError as error:
            _log.warning("%s", error)
            return failed(code_of(error))
        except UnicodeEncodeError as error:
            _log.warning("a key, or a name, is no text that can be sent: %s", error)
            return failed(Code.INVALID_PARAMS)


def _checksum() -> Choice:
    """When objects have checksums, and gets verify them.

    Raises:
        ConfigError: $MOONCAKE_CHECKSUM says none of the choices.
    """
    text = os.environ.get("MOONCAKE_CHECKSUM") or "auto"
    for choice in get_args(Choice):
        if text.lower() == choice:
            return cast(Choice, choice)
    raise ConfigError(f"MOONCAKE_CHECKSUM: expected one of {', '.join(get_args(Choice))}, got {text!r}")


def _address(text: str) -> HostPort:
    try:
        return parse_host_port(text)
    except ValueError as error:
        raise ConfigError(f"master_server_address: {error}") from error
