"""NICs that transfers share: each direction of a NIC is divided among its transfers by max-min fairness.

Nothing is computed for NICs that have room for all their transfers; where one has not, only transfers that meet there, or
through other crowded ones, are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

from mooncake_core.sim.timeline import Timeline

_ROUNDING: Final = 1 + 1e-9


class Port:
    """One direction of a node's NICs."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.flows: dict[Flow, None] = {}
        self.demand = 0.0
        """Bytes per second that its flows could use together."""

    def is_crowded(self) -> bool:
        return self.demand > self.bytes_per_s * _ROUNDING


class Flow:
    """A transfer on its way; remains at `rate` since `updated_at`."""

    __slots__ = ("cap", "done", "ports", "rate", "remaining_bytes", "updated_at", "version")

    def __init__(self, ports: tuple[Port, Port], num_bytes: float, cap: float, done: Callable[[], None], now: float):
        self.ports = ports
        self.remaining_bytes = num_bytes
        self.cap = cap
        self.rate = 0.0
        self.updated_at = now
        self.version = 0
        self.done = done


class Network:
    """All NICs of a cluster, full duplex, and the transfers between them."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._out: dict[str, Port] = {}
        self._in: dict[str, Port] = {}

    def add_node(self, name: str, bytes_per_s: float) -> None:
        """A node has NICs of so much bandwidth in each direction."""
        self._out[name] = Port(bytes_per_s)
        self._in[name] = Port(bytes_per_s)

    def start(
        self, source: str, target: str, num_bytes: float, done: Callable[[], None], *, cap: float = math.inf
    ) -> Flow:
        """Moves bytes, not faster than `cap` (bytes per second); calls `done` when they have arrived."""
        ports = (self._out[source], self._in[target])
        cap = min(cap, ports[0].bytes_per_s, ports[1].bytes_per_s)
        flow = Flow(ports, num_bytes, cap, done, self._timeline.now)
        for port in ports:
            port.flows[flow] = None
            port.demand += cap
        if any(port.is_crowded() for port in ports):
            self._share([flow, *_neighbours(ports)])
        else:
            self._set_rate(flow, cap)
        return flow

    def stop(self, flow: Flow) -> None:
        """Gives a transfer up; nothing happens to one that has ended."""
        if flow in flow.ports[0].flows:
            flow.version += 1
            self._remove(flow)

    def utilisation(self, name: str) -> float:
        """Share of a node's outgoing bandwidth in use now."""
        port = self._out[name]
        return sum(flow.rate for flow in port.flows) / port.bytes_per_s

    def _arrived(self, flow: Flow, version: int) -> None:
        if version == flow.version:
            flow.version += 1
            self._remove(flow)
            flow.done()

    def _remove(self, flow: Flow) -> None:
        affected = [port for port in flow.ports if port.is_crowded()]
        for port in flow.ports:
            del port.flows[flow]
            port.demand = port.demand - flow.cap if port.flows else 0.0
        if affected:
            self._share(_neighbours(affected, always=True))

    def _share(self, flows: Iterable[Flow]) -> None:
        """Gives all flows that these may affect their rates: the largest equal ones that ports and caps allow."""
        waiting = _connected(flows)
        room = {port: port.bytes_per_s for flow in waiting for port in flow.ports if port.is_crowded()}
        while waiting:
            counts: dict[Port, int] = {}
            for flow in waiting:
                for port in flow.ports:
                    if port in room:
                        counts[port] = counts.get(port, 0) + 1
            level = min((max(0.0, room[port]) / number for port, number in counts.items()), default=math.inf)
            # Capped flows first: what they leave raises the level of the others.
            fixed = [flow for flow in waiting if flow.cap <= level]
            if not fixed:
                tight = {port for port, number in counts.items() if room[port] / number <= level * _ROUNDING}
                fixed = [flow for flow in waiting if tight.intersection(flow.ports)]
            for flow in fixed:
                rate = min(flow.cap, level)
                del waiting[flow]
                for port in flow.ports:
                    if port in room:
                        room[port] -= rate
                self._set_rate(flow, rate)

    def _set_rate(self, flow: Flow, rate: float) -> None:
        now = self._timeline.now
        if rate == flow.rate and flow.version:
            return
        flow.remaining_bytes = max(0.0, flow.remaining_bytes - flow.rate * (now - flow.updated_at))
        flow.updated_at = now
        flow.rate = rate
        flow.version += 1
        self._timeline.at(now + flow.remaining_bytes / rate, self._arrived, flow, flow.version)


def _neighbours(ports: Iterable[Port], *, always: bool = False) -> list[Flow]:
    return [flow for port in ports if always or port.is_crowded() for flow in port.flows]


def _connected(flows: Iterable[Flow]) -> dict[Flow, None]:
    """These flows and all that meet them in crowded ports, directly or through others."""
    found: dict[Flow, None] = dict.fromkeys(flows)
    seen: set[Port] = set()
    pending = list(found)
    while pending:
        for port in pending.pop().ports:
            if port in seen or not port.is_crowded():
                continue
            seen.add(port)
            for other in port.flows:
                if other not in found:
                    found[other] = None
                    pending.append(other)
    return found
