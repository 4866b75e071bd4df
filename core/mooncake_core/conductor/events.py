"""What the Conductor is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mooncake_core.wire.messages.membership import InstanceLoad, InstanceOffer


@dataclass(frozen=True, slots=True)
class InstanceJoined:
    """A prefill or decode instance can take requests."""

    name: str
    role: Literal["prefill", "decode"]
    offer: InstanceOffer


@dataclass(frozen=True, slots=True)
class InstanceDraining:
    """An instance finishes what it has, and takes no more."""

    name: str


@dataclass(frozen=True, slots=True)
class SwitchAsked:
    """Somebody wants an instance to change its role, whatever the load."""

    name: str
    role: Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class SwitchRefused:
    """An instance that was to change its role does not: it takes requests as before."""

    name: str


@dataclass(frozen=True, slots=True)
class InstanceLeft:
    """An instance is gone, with what ran on it."""

    name: str


@dataclass(frozen=True, slots=True)
class LoadReported:
    """An instance's own word on its load."""

    name: str
    load: InstanceLoad


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """A node has these blocks now."""

    node: str
    keys: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """A node has these blocks no more."""

    node: str
    keys: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A request wants to be placed."""

    request_id: str
    model: str
    prompt_tokens: int
    max_tokens: int
    block_keys: Sequence[bytes]
    """Of the prompt's blocks that may be reused."""
    tenant: str
    deadline: float
    avoid: Sequence[str] = ()
    """Instances to be chosen only where there is no other."""
    fingerprint: bytes = b""
    """That the keys were made for; empty takes any."""
    priority: int = 0
    """Lower is earlier: instances take it before what is less urgent."""
    resumed: bool = False
    """It goes on after an instance was lost: its client has tokens already, and is not turned away for an objective."""


@dataclass(frozen=True, slots=True)
class ReservationGranted:
    """The decode instance holds memory for the request."""

    request_id: str


@dataclass(frozen=True, slots=True)
class ReservationRefused:
    """The decode instance has no room or, if not `full`, cannot be reached."""

    request_id: str
    reason: str
    full: bool = True


@dataclass(frozen=True, slots=True)
class PrefillEnded:
    """The first token is there."""

    request_id: str
    cached_tokens: int
    computed_s: float
    finished: bool = False
    """There is nothing to decode."""


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """Nothing of the request runs any more."""

    request_id: str
    released: bool = False
    """Its decode instance has let the memory go."""
    output_tokens: int = 0
    """Of the whole answer, where it has come to its end."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    InstanceJoined
    | InstanceDraining
    | SwitchAsked
    | SwitchRefused
    | InstanceLeft
    | LoadReported
    | BlocksStored
    | BlocksRemoved
    | RequestArrived
    | ReservationGranted
    | ReservationRefused
    | PrefillEnded
    | RequestEnded
    | Tick
)
