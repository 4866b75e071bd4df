"""Which rails lead to each peer, which of them are good, and which one carries what comes next. Decides only: who asks holds a
lock, and opens and ends connections."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mooncake_core.errors import PathFailed, StaleSegment
from mooncake_core.transfer.shares import Shares
from mooncake_core.transfer.weights import Weights
from mooncake_rdma.connection import Connection, Work
from mooncake_rdma.paths import PortAddress, Rail, RdmaPath, rails, weight_of

FIRST_BACK_OFF_S: Final = 1.0
LAST_BACK_OFF_S: Final = 60.0
MOST_WITHDRAWN: Final = 1 << 14

PeerKey = tuple[str, int, int]
"""Host, port and incarnation of a target."""


@dataclass(slots=True)
class Track:
    """What is known of one rail to a peer."""

    connection: Connection | None = None
    set_aside_until_s: float = 0.0
    back_off_s: float = 0.0


@dataclass(slots=True)
class Peer:
    """One start of a target's process."""

    tracks: dict[Rail, Track]
    shares: Shares[Rail] = field(default_factory=Shares)
    withdrawn: set[int] = field(default_factory=set)
    """Exports of it that have ended, the last of them."""

    def note_withdrawn(self, export: int) -> None:
        """It said that an export has ended."""
        self.withdrawn.add(export)
        if len(self.withdrawn) > MOST_WITHDRAWN:
            self.withdrawn = set(sorted(self.withdrawn)[MOST_WITHDRAWN // 2 :])

    def delivered(self, rail: Rail, rate: float, num_bytes: int, seconds: float, now: float) -> None:
        """A rail carried so much in so long a time; `rate` is what it nominally does."""
        self.shares.delivered(rail, rate, num_bytes, seconds)
        track = self.tracks[rail]
        if track.back_off_s and track.set_aside_until_s + track.back_off_s <= now:
            track.back_off_s = 0.0  # it has carried for a while: the next failure is a first one again


class Peers:
    """All that something was to be moved from or to lately."""

    def __init__(self, ports: Sequence[PortAddress], weights: Weights) -> None:
        """`ports` are ours."""
        self._ports = ports
        self._weights = weights
        self._peers: dict[PeerKey, Peer] = {}
        self._given_up: dict[int, PathFailed] = {}
        """Ports whose device does not say any more what has completed, and why."""

    def of(self, path: RdmaPath) -> Peer:
        """That of a path; for a new one, those that have no connection are forgotten: nothing else would ever do it for a process
        that has ended."""
        key = path.host, path.port, path.incarnation
        peer = self._peers.get(key)
        if peer is None:
            self._peers = {
                other: known
                for other, known in self._peers.items()
                if any(track.connection for track in known.tracks.values())
            }
            peer = self._peers[key] = Peer({rail: Track() for rail in self._rails(path)})
        return peer

    def candidates(self, peer: Peer, work: Work, now: float) -> list[Rail]:
        """Rails for a work: those of the NICs near its memory that have not failed lately, while there is one. What no other
        transport takes over tries the others too.

        Raises:
            TransferError: there is none; says why.
        """
        path = work.path
        if path.export in peer.withdrawn:
            raise StaleSegment(f"{path.host}:{path.port} has withdrawn the segment")
        left = self._left(work, peer.tracks)
        if not left:
            raise self._no_rail(path)
        good = [rail for rail in left if peer.tracks[rail].set_aside_until_s <= now]
        if not good and work.operation.has_others:
            raise PathFailed(
                f"{path.host}:{path.port} over rdma: all ways failed lately, and are not due to be tried again",
                path="rdma",
                errno=errno.EHOSTUNREACH,
            )
        near = [rail for rail in good if rail.ours in work.near.preferred]
        return near or good or left

    def next(self, peer: Peer, work: Work, pending: Mapping[Rail, int]) -> Rail:
        """Of the candidates, the one that has least to do for its rate. `pending`: bytes under way on each."""
        path = work.path
        nominal = {rail: self.rate(rail, path) * self._weight(rail, path) for rail in pending}
        return peer.shares.next(nominal, work.operation.length + 1, pending)

    def has_left(self, work: Work) -> bool:
        """Whether there is a rail that has not failed with a work."""
        return bool(self._left(work, self._rails(work.path)))

    def rate(self, rail: Rail, path: RdmaPath) -> float:
        """Gb/s of the slower one of its ports."""
        return max(1.0, min(self._ports[rail.ours].rate_gbps, path.ports[rail.theirs].rate_gbps))

    def give_up(self, ours: int, reason: PathFailed) -> None:
        """No rail of this port of ours is used again."""
        self._given_up[ours] = reason

    def detach(self, connection: Connection, now: float, *, set_aside: bool) -> bool:
        """Whether it was that of its rail until now; which is then not used for a while, where that is asked for."""
        peer = self._peer_of(connection)
        if peer is None:
            return False
        track = peer.tracks[connection.rail]
        track.connection = None
        if set_aside:
            track.back_off_s = min(max(2 * track.back_off_s, FIRST_BACK_OFF_S), LAST_BACK_OFF_S)
            track.set_aside_until_s = now + track.back_off_s
            peer.shares.forget(connection.rail)
            connection.lane.num_set_aside += 1
        return True

    def has_others(self, connection: Connection, now: float) -> bool:
        """Whether other rails to its peer could take over: those which are not set aside."""
        peer = self._peer_of(connection)
        others = [track for rail, track in peer.tracks.items() if rail != connection.rail] if peer else []
        return any(other.set_aside_until_s <= now for other in others)

    def connections(self) -> list[Connection]:
        """Of all rails that have one."""
        tracks = [track for peer in self._peers.values() for track in peer.tracks.values()]
        return [track.connection for track in tracks if track.connection is not None]

    def _peer_of(self, connection: Connection) -> Peer | None:
        """To whom it is that of its rail; None where others have taken its place."""
        for peer in self._peers.values():
            track = peer.tracks.get(connection.rail)
            if track is not None and track.connection is connection:
                return peer
        return None

    def _rails(self, path: RdmaPath) -> list[Rail]:
        return rails(self._ports, path.ports, self._weights)

    def _left(self, work: Work, among: Iterable[Rail]) -> list[Rail]:
        """Rails that have not failed with a work, of devices that can be heard, and that the topology names for its memory."""
        allowed = work.near.allowed
        return [
            rail
            for rail in among
            if rail not in work.tried and (not allowed or rail.ours in allowed) and rail.ours not in self._given_up
        ]

    def _weight(self, rail: Rail, path: RdmaPath) -> float:
        return weight_of(self._ports[rail.ours], path.ports[rail.theirs], rail.fabric, self._weights)

    def _no_rail(self, path: RdmaPath) -> PathFailed:
        peer = f"{path.host}:{path.port} over rdma"
        for reason in self._given_up.values():
            return PathFailed(f"{peer}: {reason.message}", path="rdma", errno=reason.detail["errno"])
        ours, theirs = (", ".join(map(str, ports)) or "none" for ports in (self._ports, path.ports))
        return PathFailed(
            f"{peer}: no fabric in common that transfer.weights allows, ours are {ours}, theirs {theirs}",
            path="rdma",
            errno=errno.ENETUNREACH,
        )
