"""The scheduler itself: events in, commands out."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from mooncake_core.conductor import commands as c
from mooncake_core.conductor import events as e
from mooncake_core.conductor.instances import DecodeInstance, PrefillInstance, Work
from mooncake_core.conductor.policies.contract import Policy, PrefillView, RequestView, Score
from mooncake_core.kvcache.prefix_index import PrefixIndex
from mooncake_core.units import format_duration
from mooncake_core.wire.messages.inspection import CandidateScore, Decision
from mooncake_core.wire.messages.membership import ModelOffer

RUNNERS_UP: Final = 8
SHORTEST_RETRY_S: Final = 0.5
RETRY_WITHOUT_INSTANCES_S: Final = 2.0
NEARLY: Final = 1.05
"""Instances whose ranks differ by less do equally well: predictions are not that exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConductorSettings:
    """The scheduler's part of the configuration."""

    ttft_slo_s: float | None = None
    tbt_slo_s: float | None = None
    max_decisions: int = 1000


@dataclass(slots=True)
class _Request:
    """A request from its arrival to its end."""

    arrival: e.RequestArrived
    score: Score
    decode: str
    tbt_s: float
    refused_by: set[str] = field(default_factory=set)
    unanswered: bool = False
    """A decode instance that was asked for memory could not be reached."""
    dispatched: bool = False
    prefilled: bool = False


class Conductor:
    """Places requests on prefill and decode instances (FAST'25, Algorithm 1).

    A request is first given to a decode instance, which reserves memory; only then is it dispatched.
    """

    def __init__(self, settings: ConductorSettings, policy: Policy, policy_name: str, rng: random.Random) -> None:
        self._settings = settings
        self._policy = policy
        self._policy_name = policy_name
        self._random = rng
        self._index = PrefixIndex()
        self._prefill: dict[str, PrefillInstance] = {}
        self._decode: dict[str, DecodeInstance] = {}
        self._requests: dict[str, _Request] = {}
        self._deadlines: list[tuple[float, str]] = []
        """Of requests, some of which may have ended; the earliest first."""
        self._decisions: deque[tuple[float, Decision]] = deque(maxlen=settings.max_decisions)

    @property
    def num_requests(self) -> int:
        """Requests placed, or being placed, and not ended."""
        return len(self._requests)

    def handle(self, event: e.Event, now: float) -> list[c.Command]:
        """Takes notice of an event; says what is to be done."""
        match event:
            case e.RequestArrived():
                return self._arrived(event, now)
            case e.ReservationGranted(request_id):
                return self._granted(request_id)
            case e.ReservationRefused():
                return self._refused(event, now)
            case e.PrefillEnded():
                self._prefill_ended(event)
            case e.RequestEnded(request_id, released):
                release = self._ended(request_id)
                return [] if released else release
            case e.BlocksStored(node, keys):
                self._index.stored(node, keys)
            case e.BlocksRemoved(node, keys):
                self._index.removed(node, keys)
            case e.LoadReported(name, load):
                if name in self._decode:
                    self._decode[name].report(load)
            case e.InstanceJoined():
                self._joined(event)
            case e.InstanceDraining(name):
                self._drain(name)
            case e.InstanceLeft(name):
                return self._left(name)
            case e.Tick():
                return self._expired(now)
        return []

    def next_deadline(self) -> float | None:
        """When the first request's time is over."""
        while self._deadlines:
            deadline, request_id = self._deadlines[0]
            request = self._requests.get(request_id)
            if request is not None and request.arrival.deadline == deadline:
                return deadline
            heapq.heappop(self._deadlines)  # of a request that has ended
        return None

    def describe_models(self) -> list[ModelOffer]:
        """Models that at least one prefill and one decode instance serve alike."""
        decoding = {_identity(offer) for offer in _models(self._decode.values())}
        found = {offer.name: offer for offer in _models(self._prefill.values()) if _identity(offer) in decoding}
        return [found[name] for name in sorted(found)]

    def missing(self) -> list[str]:
        """What is needed, in words, before anything can be served; empty when nothing is."""
        missing = [
            f"no {role} instance has joined"
            for role, known in (("prefill", self._prefill), ("decode", self._decode))
            if not _models(known.values())
        ]
        if not missing and not self.describe_models():
            missing = ["prefill and decode instances serve different models, dtypes or block sizes"]
        return missing

    def decisions(self, limit: int, prefix: str, now: float) -> list[Decision]:
        """The latest decisions, newest first, of requests whose id begins so."""
        found = [
            msgspec.structs.replace(decision, age_s=now - at)
            for at, decision in reversed(self._decisions)
            if decision.request_id.startswith(prefix)
        ]
        return found[:limit]

    def check(self) -> list[str]:
        """What does not add up; for tests."""
        owners = [(prefill.name, owner) for prefill in self._prefill.values() for owner in prefill.work]
        owners += [(decode.name, owner) for decode in self._decode.values() for owner in decode.blocks_of]
        problems = [f"{name} works for {owner}" for name, owner in owners if owner not in self._requests]
        problems += [
            f"{decode.name} has promised {-decode.free_blocks()} blocks too many"
            for decode in self._decode.values()
            if decode.free_blocks() < 0
        ]
        return problems

    def _arrived(self, arrival: e.RequestArrived, now: float) -> list[c.Command]:
        request_id = arrival.request_id
        prefill = [
            instance
            for instance in self._prefill.values()
            if instance.offer.model.name == arrival.model
            and arrival.fingerprint in (b"", instance.offer.model.fingerprint)
            and not instance.draining
        ]
        if not prefill:
            return self._unavailable(arrival, f"no prefill instance serves model {arrival.model}", now)
        large = [instance for instance in prefill if instance.offer.num_blocks >= _prompt_blocks(arrival, instance)]
        if not large:
            return self._too_long(arrival, prefill, now)
        scores = self._scores(arrival, large, now)
        model = self._prefill[scores[0].prefill].offer.model
        scores = [score for score in scores if _identity(self._prefill[score.prefill].offer.model) == _identity(model)]
        scores, reason = self._with_room_first(arrival, scores)
        best = scores[0]
        slo = self._settings.ttft_slo_s
        if slo is not None and best.ttft_s > slo:
            missed = _exceeds("time to first token", best.ttft_s, slo)
            return self._rejected(arrival, scores, missed, max(best.ttft_s - slo, SHORTEST_RETRY_S), now)
        decode = self._choose_decode(arrival, model, set())
        if isinstance(decode, c.Reject | c.Unavailable):
            outcome = "rejected" if isinstance(decode, c.Reject) else "unavailable"
            self._record(arrival, scores, outcome=outcome, reason=decode.reason, now=now)
            return [decode]
        request = _Request(arrival, best, decode.name, decode.tbt_with(arrival.prompt_tokens))
        self._requests[request_id] = request
        self._await_deadline(arrival)
        self._record(arrival, scores, outcome="dispatched", reason=reason, now=now, request=request)
        # Counted from now on, so that requests arriving together do not all choose the same instance.
        instance = self._prefill[best.prefill]
        instance.work[request_id] = Work(
            best.transfer_s + best.prefill_s, now, arrival.priority, _prompt_blocks(arrival, instance)
        )
        return [self._assign(request, decode, model)]

    def _scores(self, arrival: e.RequestArrived, prefill: Sequence[PrefillInstance], now: float) -> list[Score]:
        """All candidates, the best first; equal ones in seeded random order."""
        model = prefill[0].offer.model
        matches = self._index.match(arrival.block_keys)
        views = [
            PrefillView(
                name=instance.name,
                local_blocks=matches.get(instance.offer.local_node, 0),
                queue_s=instance.queue_s(now, arrival.priority),
                cost=instance.cost,
            )
            for instance in prefill
        ]
        request = RequestView(
            prompt_tokens=arrival.prompt_tokens,
            block_tokens=model.block_tokens,
            block_bytes=model.block_bytes,
            best_blocks=self._index.reach(arrival.block_keys),
        )
        scores = self._policy.score(request, views)
        self._random.shuffle(scores)
        return sorted(scores, key=lambda score: (score.prefill in arrival.avoid, self._policy.rank(score)))

    def _with_room_first(self, arrival: e.RequestArrived, scores: list[Score]) -> tuple[list[Score], str]:
        """Of instances that do as well as the best, one takes it whose KV memory holds the prompt beside those that run and
        wait there: elsewhere it waits for memory, which predicted times do not know of. Returns why as well, if so."""
        best = scores[0]
        needed = _prompt_blocks(arrival, self._prefill[best.prefill])
        if self._prefill[best.prefill].free_blocks() >= needed:
            return scores, ""
        limit = self._policy.rank(best) * NEARLY
        for score in scores[1:]:
            alike = (score.prefill in arrival.avoid) == (best.prefill in arrival.avoid)
            free = self._prefill[score.prefill].free_blocks()
            if alike and self._policy.rank(score) <= limit and free >= needed:
                reason = (
                    f"{score.prefill} has {free} blocks of KV memory free, {best.prefill} not the {needed} it needs"
                )
                return [score, *(other for other in scores if other is not score)], reason
        return scores, ""

    def _choose_decode(
        self, arrival: e.RequestArrived, model: ModelOffer, without: set[str]
    ) -> DecodeInstance | c.Reject | c.Unavailable:
        """The decode instance with the smallest predicted TBT that has room."""
        alike = [
            instance
            for instance in self._decode.values()
            if _identity(instance.offer.model) == _identity(model)
            and not instance.draining
            and instance.name not in without
        ]
        if not alike:
            reason = f"no decode instance serves model {arrival.model}" + (" that has room" if without else "")
            kind = c.Reject if without else c.Unavailable
            return kind(arrival.request_id, reason, RETRY_WITHOUT_INSTANCES_S)
        needed = _blocks(arrival, model)
        fitting = [instance for instance in alike if instance.free_blocks() >= needed]
        if not fitting:
            most = max(instance.offer.num_blocks for instance in alike)
            reason = f"no decode instance has {needed} blocks of KV memory free (the largest has {most} in all)"
            return c.Reject(arrival.request_id, reason, SHORTEST_RETRY_S, hopeless=needed > most)
        self._random.shuffle(fitting)
        best = min(
            fitting, key=lambda instance: (instance.name in arrival.avoid, instance.tbt_with(arrival.prompt_tokens))
        )
        tbt_s, slo = best.tbt_with(arrival.prompt_tokens), self._settings.tbt_slo_s
        if slo is not None and tbt_s > slo:
            reason = _exceeds("time between tokens", tbt_s, slo)
            return c.Reject(arrival.request_id, reason, SHORTEST_RETRY_S)
        return best

    def _assign(self, request: _Request, decode: DecodeInstance, model: ModelOffer) -> c.ReserveDecode:
        arrival = request.arrival
        request.decode = decode.name
        decode.assign(arrival.request_id, _blocks(arrival, model), arrival.prompt_tokens)
        return c.ReserveDecode(
            arrival.request_id, decode.name, arrival.prompt_tokens, arrival.max_tokens, arrival.deadline
        )

    def _granted(self, request_id: str) -> list[c.Command]:
        request = self._requests.get(request_id)
        if request is None:
            return []  # it ended meanwhile, and its memory was asked to be released then
        request.dispatched = True
        score = request.score
        model = self._prefill[score.prefill].offer.model
        return [
            c.Dispatch(
                request_id=request_id,
                prefill=score.prefill,
                decode=request.decode,
                matched_tokens=(score.local_blocks + score.fetched_blocks) * model.block_tokens,
                expected_ttft_s=score.ttft_s,
                expected_tbt_s=request.tbt_s,
            )
        ]

    def _refused(self, refusal: e.ReservationRefused, now: float) -> list[c.Command]:
        """The next best decode instance is asked, until none is left. An instance that cannot be reached will soon be there
        again, or be known to have left: what it would have said is no reason to turn a request away."""
        request_id = refusal.request_id
        request = self._requests.get(request_id)
        if request is None:
            return []
        if request.decode in self._decode:
            self._decode[request.decode].release(request_id)
        request.refused_by.add(request.decode)
        request.unanswered |= not refusal.full
        model = self._prefill[request.score.prefill].offer.model
        decode = self._choose_decode(request.arrival, model, request.refused_by)
        if isinstance(decode, DecodeInstance):
            return [self._assign(request, decode, model)]
        self._forget(request_id)
        reason = f"{decode.reason}; {request.decode} said: {refusal.reason}"
        outcome = "unavailable" if request.unanswered else "rejected"
        self._record(request.arrival, [request.score], outcome=outcome, reason=reason, now=now)
        kind = c.Unavailable if request.unanswered else c.Reject
        return [kind(request_id, reason, decode.retry_after_s)]

    def _prefill_ended(self, event: e.PrefillEnded) -> None:
        request = self._requests.get(event.request_id)
        if request is None or request.prefilled:
            return
        request.prefilled = True
        instance = self._prefill.get(request.score.prefill)
        if instance is not None:
            instance.work.pop(event.request_id, None)
            instance.cost.observe_prefill(request.arrival.prompt_tokens, event.cached_tokens, event.computed_s)

    def _ended(self, request_id: str) -> list[c.Command]:
        request = self._forget(request_id)
        return [] if request is None else [c.ReleaseDecode(request_id, request.decode)]

    def _expired(self, now: float) -> list[c.Command]:
        """Requests whose deadline has passed, whoever forgot to say that they ended."""
        late = [request_id for request_id, request in self._requests.items() if request.arrival.deadline <= now]
        commands: list[c.Command] = []
        for request_id in late:
            dispatched = self._requests[request_id].dispatched
            commands += self._ended(request_id)
            if not dispatched:
                commands.append(c.Unavailable(request_id, "the request's deadline has passed", SHORTEST_RETRY_S))
        return commands

    def _joined(self, event: e.InstanceJoined) -> None:
        if event.role == "prefill":
            self._prefill[event.name] = PrefillInstance(event.name, event.offer)
        else:
            self._decode[event.name] = DecodeInstance(event.name, event.offer)

    def _drain(self, name: str) -> None:
        """What was placed there stays; nothing more goes there."""
        if prefill := self._prefill.get(name):
            prefill.draining = True
        if decode := self._decode.get(name):
            decode.draining = True

    def _left(self, name: str) -> list[c.Command]:
        """What was not dispatched yet cannot go there; what was, the gateway finds out about."""
        self._prefill.pop(name, None)
        self._decode.pop(name, None)
        commands: list[c.Command] = []
        for request_id, request in list(self._requests.items()):
            if name in (request.score.prefill, request.decode) and not request.dispatched:
                commands += self._ended(request_id)
                commands.append(c.Unavailable(request_id, f"instance {name} has left", SHORTEST_RETRY_S))
        return commands

    def _await_deadline(self, arrival: e.RequestArrived) -> None:
        heapq.heappush(self._deadlines, (arrival.deadline, arrival.request_id))
        if len(self._deadlines) > 2 * len(self._requests) + 64:  # most have ended, behind one that goes on
            self._deadlines = [(request.arrival.deadline, name) for name, request in self._requests.items()]
            heapq.heapify(self._deadlines)

    def _forget(self, request_id: str) -> _Request | None:
        request = self._requests.pop(request_id, None)
        if request is not None:
            if prefill := self._prefill.get(request.score.prefill):
                prefill.work.pop(request_id, None)
            if decode := self._decode.get(request.decode):
                decode.release(request_id)
        return request

    def _unavailable(self, arrival: e.RequestArrived, reason: str, now: float) -> list[c.Command]:
        self._record(arrival, [], outcome="unavailable", reason=reason, now=now)
        return [c.Unavailable(arrival.request_id, reason, RETRY_WITHOUT_INSTANCES_S)]

    def _too_long(self, arrival: e.RequestArrived, prefill: Sequence[PrefillInstance], now: float) -> list[c.Command]:
        """Waiting does not make memory larger."""
        needed = _prompt_blocks(arrival, prefill[0])
        most = max(instance.offer.num_blocks for instance in prefill)
        reason = (
            f"no prefill instance has the {needed} blocks of KV memory that the prompt needs (the largest has {most})"
        )
        self._record(arrival, [], outcome="rejected", reason=reason, now=now)
        return [c.Reject(arrival.request_id, reason, SHORTEST_RETRY_S, hopeless=True)]

    def _rejected(
        self, arrival: e.RequestArrived, scores: Sequence[Score], reason: str, retry_after_s: float, now: float
    ) -> list[c.Command]:
        self._record(arrival, scores, outcome="rejected", reason=reason, now=now)
        return [c.Reject(arrival.request_id, reason, retry_after_s)]

    def _record(
        self,
        arrival: e.RequestArrived,
        scores: Sequence[Score],
        *,
        outcome: str,
        reason: str,
        now: float,
        request: _Request | None = None,
    ) -> None:
        matches = self._index.match(arrival.block_keys)
        holder = max(matches, key=lambda name: matches[name], default="")
        decision = Decision(
            request_id=arrival.request_id,
            age_s=0.0,
            prompt_tokens=arrival.prompt_tokens,
            prompt_blocks=len(arrival.block_keys),
            policy=self._policy_name,
            outcome=outcome,
            reason=reason,
            prefill=request.score.prefill if request else "",
            decode=request.decode if request else "",
            best_match_blocks=matches.get(holder, 0),
            best_match_holder=holder,
            expected_ttft_s=request.score.ttft_s if request else 0.0,
            expected_tbt_s=request.tbt_s if request else 0.0,
            candidates=[self._candidate(score) for score in scores[: RUNNERS_UP + 1]],
        )
        self._decisions.append((now, decision))

    def _candidate(self, score: Score) -> CandidateScore:
        instance = self._prefill.get(score.prefill)
        return CandidateScore(
            prefill=score.prefill,
            local_blocks=score.local_blocks,
            fetched_blocks=score.fetched_blocks,
            queue_s=score.queue_s,
            transfer_s=score.transfer_s,
            prefill_s=score.prefill_s,
            ttft_s=score.ttft_s,
            free_blocks=max(0, instance.free_blocks()) if instance else 0,
        )


def _models(instances: Iterable[PrefillInstance | DecodeInstance]) -> list[ModelOffer]:
    """Of those that take requests."""
    return [instance.offer.model for instance in instances if not instance.draining]


def _identity(offer: ModelOffer) -> tuple[str, bytes]:
    return offer.name, offer.fingerprint


def _blocks(arrival: e.RequestArrived, model: ModelOffer) -> int:
    """Blocks for prompt and answer."""
    return -(-(arrival.prompt_tokens + arrival.max_tokens) // model.block_tokens)


def _prompt_blocks(arrival: e.RequestArrived, instance: PrefillInstance) -> int:
    """Blocks that a prefill instance needs for the prompt."""
    return -(-arrival.prompt_tokens // instance.offer.model.block_tokens)


def _exceeds(what: str, expected_s: float, slo_s: float) -> str:
    shown, limit = format_duration(expected_s), format_duration(slo_s)
    over = f" by {format_duration(expected_s - slo_s)}" if shown == limit else ""
    return f"expected {what} {shown} exceeds the objective of {limit}{over}"
