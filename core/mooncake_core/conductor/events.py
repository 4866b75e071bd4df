"""What the Conductor is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from mooncake_core.wire.messages.membership import InstanceLoad, InstanceOffer
from mooncake_core.wire.messages.tiering import DRAM, Tier


class InstanceJoined(Struct, frozen=True, gc=False):
    """A prefill or decode instance can take requests."""

    name: str
    role: Literal["prefill", "decode"]
    offer: InstanceOffer


class InstanceDraining(Struct, frozen=True, gc=False):
    """An instance finishes what it has, and takes no more."""

    name: str


class SwitchAsked(Struct, frozen=True, gc=False):
    """Somebody wants an instance to change its role, whatever the load."""

    name: str
    role: Literal["prefill", "decode"]


class SwitchRefused(Struct, frozen=True, gc=False):
    """An instance that was to change its role does not: it takes requests as before."""

    name: str


class InstanceLeft(Struct, frozen=True, gc=False):
    """An instance is gone, with what ran on it."""

    name: str


class LoadReported(Struct, frozen=True, gc=False):
    """An instance's own word on its load."""

    name: str
    load: InstanceLoad


class BlocksStored(Struct, frozen=True, gc=False):
    """A node has these blocks now, or has them in another tier than before."""

    node: str
    keys: Sequence[bytes]
    tier: Tier = DRAM
    """Where its fastest copy lies."""


class BlocksRemoved(Struct, frozen=True, gc=False):
    """A node has these blocks no more, in none of its tiers."""

    node: str
    keys: Sequence[bytes]


class BlocksLoaded(Struct, frozen=True, gc=False):
    """A node has brought up so many bytes from below DRAM."""

    node: str
    num_bytes: int
    took_s: float


class RequestArrived(Struct, frozen=True, gc=False):
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


class ReservationGranted(Struct, frozen=True, gc=False):
    """The decode instance holds memory for the request."""

    request_id: str


class ReservationRefused(Struct, frozen=True, gc=False):
    """The decode instance has no room or, if not `full`, cannot be reached."""

    request_id: str
    reason: str
    full: bool = True


class PrefillEnded(Struct, frozen=True, gc=False):
    """The first token is there."""

    request_id: str
    cached_tokens: int
    computed_s: float
    finished: bool = False
    """There is nothing to decode."""


class RequestEnded(Struct, frozen=True, gc=False):
    """Nothing of the request runs any more."""

    request_id: str
    released: bool = False
    """Its decode instance has let the memory go."""
    output_tokens: int = 0
    """Of the whole answer, where it has come to its end."""


class Tick(Struct, frozen=True, gc=False):
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
    | BlocksLoaded
    | RequestArrived
    | ReservationGranted
    | ReservationRefused
    | PrefillEnded
    | RequestEnded
    | Tick
)
