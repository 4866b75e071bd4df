"""Drives the Conductor: requests in, reservations at decode instances, placements or refusals out."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mooncake_core.conductor import commands as c
from mooncake_core.conductor import events as e
from mooncake_core.conductor.conductor import Conductor
from mooncake_core.errors import InvalidRequest, MooncakeError, NoSpace, RequestRejected, ServiceUnavailable
from mooncake_core.kvcache.keys import block_key, pool_key
from mooncake_core.roles.drive import Drive
from mooncake_core.roles.tasks import Tasks
from mooncake_core.store.events import BlocksRemoved, BlocksStored
from mooncake_core.store.tier_events import ObjectsLoaded
from mooncake_core.telemetry.spans import Spans
from mooncake_core.wire.client import Client
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.membership import ChangeRole, SwitchRole
from mooncake_core.wire.messages.serving import (
    DescribeModels,
    Models,
    Place,
    Placed,
    PrefillEnded,
    Release,
    RequestEnded,
    Reservation,
    Reserve,
    Reserved,
)
from mooncake_core.wire.server import Call, Handler

RESERVE_TIMEOUT_S: Final = 5.0
RELEASE_TIMEOUT_S: Final = 5.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Placement:
    """A request on its way to being placed."""

    answer: asyncio.Future[Placed]
    block_keys: Sequence[bytes]
    reservation: Reservation | None = None


class ConductorDriver:
    """Owns the Conductor; executes its commands."""

    def __init__(
        self,
        conductor: Conductor,
        *,
        client_of: Callable[[str], Client | None],
        address_of: Callable[[str], str],
        spans: Spans,
        prefetch: Callable[[Iterable[str]], None] = lambda keys: None,
        copy: Callable[[Iterable[str], str], None] = lambda keys, node: None,
    ) -> None:
        """`prefetch` hears which objects of the pool a request that was placed is about to read, `copy` which of them a node
        is to have as well."""
        self.conductor = conductor
        self._client_of = client_of
        self._spans = spans
        self._address_of = address_of
        self._prefetch = prefetch
        self._copy = copy
        self._drive: Drive[e.Event, c.Command] = Drive(conductor, execute=self._execute, tick=e.Tick)
        self._placing: dict[str, _Placement] = {}
        self._asked_by: dict[str, str] = {}  # request → gateway that answers for it
        self._tasks = Tasks()
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.cached_tokens_by_tier: Counter[str] = Counter()
        self._prompt_tokens_of: dict[str, int] = {}
        self._refused_at_decode: dict[str, MooncakeError] = {}

    def handlers(self) -> dict[type, Handler]:
        """What gateways may ask and tell."""
        return {
            DescribeModels: self._describe,
            Place: self._place,
            PrefillEnded: self._prefill_ended,
            RequestEnded: self._request_ended,
            SwitchRole: self._switch_asked,
        }

    def feed(self, event: e.Event) -> None:
        """Membership and the pool tell what has changed."""
        self._drive.feed(event)

    def on_pool_change(self, change: BlocksStored | BlocksRemoved | ObjectsLoaded) -> None:
        """What nodes have is what a prefill can reuse, and how fast they load is what it waits for."""
        if isinstance(change, ObjectsLoaded):
            self.feed(e.BlocksLoaded(change.node, change.num_bytes, change.took_s))
            return
        keys = [key for key in map(block_key, change.keys) if key is not None]
        if not keys:
            return
        match change:
            case BlocksStored(node=node, tier=tier):
                self.feed(e.BlocksStored(node, keys, tier))
            case BlocksRemoved(node=node):
                self.feed(e.BlocksRemoved(node, keys))

    def now(self) -> float:
        return self._drive.now()

    def gateway_left(self, name: str) -> None:
        """Nobody waits for a dead gateway's requests any more."""
        for request_id in [request for request, gateway in self._asked_by.items() if gateway == name]:
            self._end(request_id)

    async def close(self) -> None:
        """Ends ticks and what instances are being asked."""
        self._drive.close()
        await self._tasks.close()

    def _describe(self, message: DescribeModels, call: Call) -> Models:
        return Models(models=list(self.conductor.describe_models()))

    async def _place(self, message: Place, call: Call) -> Placed:
        answer: asyncio.Future[Placed] = asyncio.get_running_loop().create_future()
        self._placing[message.request_id] = _Placement(answer, message.block_keys)
        self._asked_by[message.request_id] = call.peer
        self._prompt_tokens_of[message.request_id] = message.prompt_tokens
        try:
            self._drive.feed(_arrival(message, self.now()))
            return await answer
        except BaseException:  # cancelled too: the gateway will never say that this request ended
            self._end(message.request_id)
            raise
        finally:
            self._placing.pop(message.request_id, None)

    def _prefill_ended(self, message: PrefillEnded, call: Call) -> Done:
        self.prompt_tokens += self._prompt_tokens_of.pop(message.request_id, 0)
        self.cached_tokens += message.cached_tokens
        self.cached_tokens_by_tier.update(message.cached_tokens_by_tier)
        event = e.PrefillEnded(message.request_id, message.cached_tokens, message.computed_s, message.finished)
        self._drive.feed(event)
        if refusal := self._refused_at_decode.pop(message.request_id, None):
            raise refusal
        return Done()

    def _request_ended(self, message: RequestEnded, call: Call) -> Done:
        self._end(message.request_id, released=message.released, output_tokens=message.output_tokens)
        return Done()

    def _switch_asked(self, message: SwitchRole, call: Call) -> Done:
        role = self.conductor.role_of(message.name)
        if role is None:
            raise InvalidRequest(f"expected the name of a prefill or decode instance, got {message.name}", param="name")
        if role != message.role:
            self._drive.feed(e.SwitchAsked(message.name, message.role))
        return Done()

    def _end(self, request_id: str, *, released: bool = False, output_tokens: int = 0) -> None:
        self._forget(request_id)
        self._drive.feed(e.RequestEnded(request_id, released, output_tokens))

    def _forget(self, request_id: str) -> None:
        self._asked_by.pop(request_id, None)
        self._prompt_tokens_of.pop(request_id, None)

    def _execute(self, command: c.Command) -> None:
        match command:
            case c.ReserveDecode(request_id=request_id, matched_blocks=matched):
                if matched and (placement := self._placing.get(request_id)):
                    self._prefetch(map(pool_key, placement.block_keys[:matched]))
                self._tasks.start(self._reserve(command))
            case c.Dispatch():
                self._dispatch(command)
            case c.Reject(request_id=request_id, reason=reason, hopeless=True):
                self._refuse(request_id, InvalidRequest(f"{reason}: shorten prompt or answer", param="max_tokens"))
            case c.Reject(request_id=request_id, reason=reason, retry_after_s=retry_after_s, stage="decode"):
                self._refused_at_decode[request_id] = RequestRejected(reason, retry_after_s=retry_after_s)
            case c.Reject(request_id=request_id, reason=reason, retry_after_s=retry_after_s):
                self._refuse(request_id, RequestRejected(reason, retry_after_s=retry_after_s))
            case c.Unavailable(request_id=request_id, reason=reason, retry_after_s=retry_after_s):
                self._refuse(request_id, ServiceUnavailable(reason, retry_after_s=retry_after_s))
            case c.SwitchRole():
                self._tasks.start(self._switch(command))
            case c.CopyBlocks(node=node, keys=keys):
                self._copy(map(pool_key, keys), node)
            case c.ReleaseDecode():
                self._forget(command.request_id)  # also where it ended by its deadline, and nobody said so
                self._tasks.start(self._release(command))

    async def _reserve(self, command: c.ReserveDecode) -> None:
        client = self._client_of(command.decode)
        try:
            if client is None:
                raise ServiceUnavailable(f"decode instance {command.decode} has left")
            with self._spans.during(command.request_id, "reserve memory", decode=command.decode):
                reserved = await client.call(self._reserve_message(command), Reserved, timeout_s=RESERVE_TIMEOUT_S)
        except MooncakeError as error:
            full = isinstance(error, NoSpace)
            _log.log(
                logging.DEBUG if full else logging.WARNING,
                "decode %s cannot reserve for %s: %s",
                command.decode,
                command.request_id,
                error,
            )
            self._drive.feed(e.ReservationRefused(command.request_id, error.message, full))
            return
        if placement := self._placing.get(command.request_id):
            placement.reservation = reserved.reservation
        self._drive.feed(e.ReservationGranted(command.request_id))

    def _reserve_message(self, command: c.ReserveDecode) -> Reserve:
        return Reserve(
            request_id=command.request_id,
            prompt_tokens=command.prompt_tokens,
            max_tokens=command.max_tokens,
            ttl_s=command.deadline - self.now(),
        )

    async def _switch(self, command: c.SwitchRole) -> None:
        client = self._client_of(command.instance)
        if client is None:
            return  # it has left
        _log.info("%s is to join again as %s, when it has finished what it has", command.instance, command.role)
        try:
            await client.call(ChangeRole(role=command.role), Done, timeout_s=RELEASE_TIMEOUT_S)
        except MooncakeError as error:
            _log.warning("%s does not change its role: %s", command.instance, error)
            self._drive.feed(e.SwitchRefused(command.instance))

    async def _release(self, command: c.ReleaseDecode) -> None:
        client = self._client_of(command.decode)
        if client is None:
            return
        try:
            await client.call(Release(request_id=command.request_id), Done, timeout_s=RELEASE_TIMEOUT_S)
        except MooncakeError as error:  # the reservation's time to live ends it
            _log.warning("decode %s did not release %s: %s", command.decode, command.request_id, error)

    def _dispatch(self, command: c.Dispatch) -> None:
        placement = self._placing.get(command.request_id)
        if placement is None or placement.answer.done() or placement.reservation is None:
            return  # the gateway went away; its cancellation ends the request
        placement.answer.set_result(
            Placed(
                request_id=command.request_id,
                prefill=command.prefill,
                prefill_address=self._address_of(command.prefill),
                decode=command.decode,
                decode_address=self._address_of(command.decode),
                reservation=placement.reservation,
                matched_tokens=command.matched_tokens,
                expected_ttft_s=command.expected_ttft_s,
                expected_tbt_s=command.expected_tbt_s,
                checked_at_decode=self.conductor.checks_decode,
            )
        )

    def _refuse(self, request_id: str, error: MooncakeError) -> None:
        placement = self._placing.get(request_id)
        if placement and not placement.answer.done():
            placement.answer.set_exception(error)


def _arrival(message: Place, now: float) -> e.RequestArrived:
    return e.RequestArrived(
        request_id=message.request_id,
        model=message.model,
        prompt_tokens=message.prompt_tokens,
        max_tokens=message.max_tokens,
        block_keys=message.block_keys,
        tenant=message.tenant,
        deadline=now + message.deadline_s,
        avoid=message.avoid,
        fingerprint=message.fingerprint,
        priority=message.priority,
        resumed=message.resumed,
    )
