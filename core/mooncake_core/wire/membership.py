"""Who is a member: joins, heartbeats, leases. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mooncake_core.errors import MemberUnknown
from mooncake_core.wire.messages.membership import Heartbeat, InstanceLoad, Join, Leave


@dataclass(slots=True)
class Record:
    """A member as it last spoke."""

    join: Join
    heard_at: float
    load: InstanceLoad | None = None
    draining: bool = False


@dataclass(frozen=True, slots=True)
class MemberJoined:
    """A process became a member; one of the same name and an older incarnation has left before."""

    join: Join


@dataclass(frozen=True, slots=True)
class MemberReported:
    """A member told its load."""

    name: str
    load: InstanceLoad


@dataclass(frozen=True, slots=True)
class MemberDraining:
    """A member is about to leave: it finishes what it runs."""

    join: Join


@dataclass(frozen=True, slots=True)
class MemberLeft:
    """A member said good-bye, was silent for too long, or was replaced by a new incarnation."""

    join: Join
    reason: str
    silent: bool = False
    """It may live, and be back."""


Change = MemberJoined | MemberReported | MemberDraining | MemberLeft


class Membership:
    """The table of members."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s: Final = lease_s
        self.records: dict[str, Record] = {}

    def join(self, message: Join, now: float) -> list[Change]:
        """A process asks to be a member. Repeating it changes nothing."""
        known = self.records.get(message.name)
        same = known is not None and known.join.incarnation == message.incarnation
        if known is not None and same and known.join.role == message.role:
            known.join, known.heard_at = message, now
            return []
        self.records[message.name] = Record(message, now)
        if known is None:
            return [MemberJoined(message)]
        reason = f"is {message.role} now" if same else "was started anew"
        return [MemberLeft(known.join, reason), MemberJoined(message)]

    def heartbeat(self, message: Heartbeat, now: float) -> list[Change]:
        """A member lives.

        Raises:
            MemberUnknown: it is not known in this incarnation; it must join again.
        """
        record = self.records.get(message.name)
        if record is None or record.join.incarnation != message.incarnation:
            raise MemberUnknown(f"{message.name} is not a member in this incarnation: join again")
        record.heard_at = now
        changes: list[Change] = []
        if message.draining and not record.draining:
            record.draining = True
            changes.append(MemberDraining(record.join))
        if message.load is not None:
            record.load = message.load
            changes.append(MemberReported(message.name, message.load))
        return changes

    def leave(self, message: Leave) -> list[Change]:
        """A member goes in good order."""
        record = self.records.get(message.name)
        if record is None or record.join.incarnation != message.incarnation:
            return []
        del self.records[message.name]
        return [MemberLeft(record.join, "left")]

    def tick(self, now: float) -> list[Change]:
        """Drops who was silent for longer than the lease."""
        silent = [record for record in self.records.values() if record.heard_at + self._lease_s <= now]
        for record in silent:
            del self.records[record.join.name]
        return [MemberLeft(record.join, f"was silent for {self._lease_s:g}s", silent=True) for record in silent]

    def next_deadline(self) -> float | None:
        """When the first member's lease ends."""
        return min((record.heard_at + self._lease_s for record in self.records.values()), default=None)
