"""What every role process has: configuration, identity, and how it reaches the others."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mooncake_core.config.processes import ProcessSpec
from mooncake_core.config.tls import absolute
from mooncake_core.errors import ConfigError
from mooncake_core.roles.parent import Boot, announce
from mooncake_core.telemetry.loop_pauses import LoopPauses
from mooncake_core.telemetry.spans import Spans
from mooncake_core.wire.auth import ClusterKey
from mooncake_core.wire.client import Clients
from mooncake_core.wire.member import Member

if TYPE_CHECKING:
    from mooncake_core.config.schema import TlsConfig
    from mooncake_core.transfer.contract import TlsFiles
    from mooncake_core.transfer.engine import TransferEngine

DRAIN_POLL_S: Final = 0.02


class Orders:
    """What the process was told by signals."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        """Take no new work, finish what runs, and end."""
        self.hurry = asyncio.Event()
        """End without finishing what runs."""

    def end_now(self) -> None:
        """Stop, and hurry."""
        self.hurry.set()
        self.stop.set()


class RoleContext:
    """Made once per member; roles take from it what they need."""

    def __init__(
        self, boot: Boot, spec: ProcessSpec, orders: Orders, pauses: LoopPauses, *, num_members: int = 1
    ) -> None:
        self.config = boot.config
        self.spec = spec
        self.name = spec.name
        self.pauses = pauses
        """Of the event loop it runs on."""
        self.stop = orders.stop
        self._hurry = orders.hurry
        self.ready = False
        """Whether it was announced."""
        self.incarnation = secrets.randbits(63)
        self.key = load_key(boot.config.auth.key_file if boot.config.auth else None)
        self.master_address = boot.master_address
        self.spans = Spans(spec.name, num_members=num_members)
        self.clients = Clients(name=spec.name, key=self.key, clusters={boot.master_address: boot.cluster})

    @property
    def host_id(self) -> str:
        """Processes with equal ids may share memory."""
        from mooncake_core.transfer.host import default_host_id

        return self.config.transfer.host_id or default_host_id()

    def announce(self, address: str, *, admin_url: str = "", metrics_url: str = "") -> None:
        """Tells the supervisor that this member is ready."""
        self.ready = True
        self.pauses.begin()
        announce(self.name, address, admin_url=admin_url, metrics_url=metrics_url)

    def transfer_engine(self, host: str, data_port: int) -> TransferEngine:
        """A Transfer Engine as the configuration wants it, listening on host:data_port."""
        from mooncake_core.transfer.engine import TransferEngine
        from mooncake_core.transfer.host import addresses_in
        from mooncake_core.transfer.topology import Priority

        transfer = self.config.transfer
        return TransferEngine(
            owner=self.name,
            host_id=self.host_id,
            incarnation=self.incarnation,
            transports=transfer.transports,
            optional=transfer.optional,
            listen_host=host,
            listen_port=data_port,
            further_hosts=addresses_in(transfer.networks),
            secret=self.key.secret if self.key else None,
            tls=tls_files(transfer.tls),
            connections_per_peer=transfer.connections,
            timeout_s=transfer.timeout,
            busy_poll_s=transfer.busy_poll,
            weights=transfer.weights,
            topology={
                location: Priority(nics.preferred, nics.secondary) for location, nics in transfer.topology.items()
            },
        )

    async def serve(
        self,
        member: Member,
        finish: Callable[[], Awaitable[None]] | None = None,
        *,
        until: asyncio.Event | None = None,
    ) -> None:
        """Stays a member of the cluster until told to stop, or until another event, and while `finish` finishes what runs;
        then leaves in good order."""
        membership = asyncio.create_task(member.run())
        ends = [asyncio.create_task(event.wait()) for event in (self.stop, until) if event is not None]
        try:
            await asyncio.wait([membership, *ends], return_when=asyncio.FIRST_COMPLETED)
            if membership.done():
                membership.result()  # it ends only by an error, such as a wrong key
            if finish is not None:
                member.drain()
                await finish()
            await member.leave()
        finally:
            for task in (membership, *ends):
                task.cancel()

    async def idle(self, is_busy: Callable[[], bool]) -> None:
        """Waits until nothing runs any more: for drain_timeout at most, and not when there is no time."""
        deadline = time.monotonic() + self.config.drain_timeout
        while is_busy() and time.monotonic() < deadline and not self._hurry.is_set():  # noqa: ASYNC110 (many things)
            await asyncio.sleep(DRAIN_POLL_S)


def load_key(key_file: str | None) -> ClusterKey | None:
    """The cluster key, or None where authentication is off.

    Raises:
        ConfigError: authentication is on and the key is missing or malformed.
    """
    if key_file is None:
        return None
    path = key_file or os.environ.get("MOONCAKE_KEY_FILE", "")
    if not path:
        raise ConfigError("expected auth.key_file or $MOONCAKE_KEY_FILE; `mooncake auth init` writes a key")
    return ClusterKey.load(Path(path).expanduser())


def tls_files(tls: TlsConfig | None) -> TlsFiles | None:
    """Where the files of `transfer.tls` are; None where connections are not encrypted."""
    from mooncake_core.transfer.contract import TlsFiles

    if tls is None:
        return None
    files = absolute(tls)
    return TlsFiles(files.certificate, files.key, files.ca)
