"""A transport whose operations wait until a test lets them go on."""

from __future__ import annotations

import threading
from typing import ClassVar

from mooncake_core.testing.memory_transport import Hub, MemoryTransport
from mooncake_core.transfer.contract import Kind, Operation
from mooncake_core.transfer.exports import KEY_BYTES

PATIENCE_S = 10.0


class Gate:
    """Holds operations of one kind at the owners named, each until it is opened."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._kind = Kind.WRITE
        self._opened: dict[str, threading.Event] = {}
        self.held: list[str] = []
        """Owners at which something waits or waited, in order."""

    def hold(self, kind: Kind, *owners: str) -> None:
        self._kind = kind
        self._opened = {owner: threading.Event() for owner in owners}

    def open(self, owner: str) -> None:
        self._opened[owner].set()

    def let_pass(self, operation: Operation) -> None:
        peer = self._hub.transports.get(operation.path[:-KEY_BYTES])
        if peer is not None and operation.kind is self._kind and peer.owner in self._opened:
            self.held.append(peer.owner)
            self._opened[peer.owner].wait(PATIENCE_S)


class _HeldTransport(MemoryTransport):
    gate: ClassVar[Gate]

    def _move(self, operation: Operation) -> None:
        self.gate.let_pass(operation)
        super()._move(operation)


def held_transport() -> tuple[Gate, type[MemoryTransport]]:
    """A gate, and the transport class that has to pass it."""
    hub = Hub()
    gate = Gate(hub)
    return gate, type("HeldTransport", (_HeldTransport,), {"hub": hub, "gate": gate})
