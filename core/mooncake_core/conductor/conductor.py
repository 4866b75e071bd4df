"""The scheduler itself: events in, commands out."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mooncake_core.conductor import commands as c
from mooncake_core.conductor import events as e
from mooncake_core.conductor.admission.contract import Admission, AdmissionSettings, Asking, Refusal
from mooncake_core.conductor.admission.none import AdmitAll
from mooncake_core.conductor.admission.objectives import SHORTEST_RETRY_S
from mooncake_core.conductor.balance import Balance
from mooncake_core.conductor.decisions import RUNNERS_UP, DecisionLog, Outcome
from mooncake_core.conductor.decode_pool import RETRY_WITHOUT_INSTANCES_S, DecodeChoice, DecodePool
from mooncake_core.conductor.instances import Assigned, DecodeInstance, PrefillInstance, Work, identity
from mooncake_core.conductor.policies.contract import Policy
from mooncake_core.conductor.prefill_pool import Observed, PrefillPool, Ranking
from mooncake_core.conductor.requests import Request, Requests, prompt_blocks, unended
from mooncake_core.conductor.role_planning import Role
from mooncake_core.conductor.shares import EVERYTHING, TenantShares
from mooncake_core.wire.messages.inspection import Decision
from mooncake_core.wire.messages.membership import ModelOffer


@dataclass(frozen=True, slots=True, kw_only=True)
class ConductorSettings:
    """The scheduler's part of the configuration."""

    max_decisions: int = 1000
    spread_shared: bool = False
    """Beginnings of prompts that many requests share earn no credit until enough nodes have them."""
    equal_within: float = 0.0
    """Instances whose ranks differ by such a share at most do equally well: any of them is taken."""
    replication_threshold: float | None = None
    """What the pool has of a prompt is copied to the node of the instance that takes it, where that is longer than what lies
    there by more than this factor; None: never."""


class Conductor:
    """Places requests on prefill and decode instances (FAST'25, Algorithm 1).

    A request is first given to a decode instance, which reserves memory; only then is it dispatched.
    """

    def __init__(
        self,
        settings: ConductorSettings,
        policy: Policy,
        policy_name: str,
        rng: random.Random,
        admission: Admission | None = None,
        balance: Balance | None = None,
        shares: TenantShares | None = None,
    ) -> None:
        """Without an admission all requests are taken for which there is memory, without a balance nobody changes roles, and
        without shares all tenants are as one."""
        self._settings = settings
        self._admission = admission or AdmitAll(AdmissionSettings())
        self._prefill = PrefillPool(
            policy, rng, spread_shared=settings.spread_shared, equal_within=settings.equal_within
        )
        self._decode = DecodePool(rng)
        self._balance = balance
        self._shares = shares
        self._requests = Requests()
        self._log = DecisionLog(settings.max_decisions, policy_name, self._prefill.index)

    @property
    def num_requests(self) -> int:
        """Requests placed, or being placed, and not ended."""
        return len(self._requests)

    @property
    def checks_decode(self) -> bool:
        """A request may be refused when its prefill has ended."""
        return self._admission.checks_decode

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
                return self._prefill_ended(event, now)
            case e.RequestEnded():
                return self._request_ended(event, now)
            case e.BlocksStored(node, keys, tier):
                self._prefill.index.stored(node, keys, tier)
            case e.BlocksRemoved(node, keys):
                self._prefill.index.removed(node, keys)
            case e.BlocksLoaded(node, num_bytes, took_s):
                self._prefill.loaded(node, num_bytes, took_s)
            case e.LoadReported(name, load):
                self._prefill.report(name, now)
                self._decode.report(name, load)
                return self._plan_roles(now)
            case e.InstanceJoined():
                self._joined(event, now)
            case e.InstanceDraining(name):
                self._drain(name)
            case e.SwitchAsked(name, role):
                self._drain(name)
                return [c.SwitchRole(name, role)]
            case e.SwitchRefused(name):
                self._take_again(name)
            case e.InstanceLeft(name):
                return self._left(name, now)
            case e.Tick():
                return self._expired(now)
        return []

    def next_deadline(self) -> float | None:
        """When the first request's time is over."""
        return self._requests.next_deadline()

    def describe_models(self) -> list[ModelOffer]:
        """Models that at least one prefill and one decode instance serve alike."""
        decoding = {identity(offer) for offer in _models(self._decode.instances.values())}
        offers = _models(self._prefill.instances.values())
        found = {offer.name: offer for offer in offers if identity(offer) in decoding}
        return [found[name] for name in sorted(found)]

    def missing(self) -> list[str]:
        """What is needed, in words, before anything can be served; empty when nothing is."""
        missing = []
        if not _models(self._prefill.instances.values()):
            missing.append("no prefill instance has joined")
        if not _models(self._decode.instances.values()):
            missing.append("no decode instance has joined")
        if not missing and not self.describe_models():
            missing = ["prefill and decode instances serve different models, dtypes or block sizes"]
        return missing

    def role_of(self, name: str) -> Role | None:
        """Of an instance, which may be draining; None where there is none of such a name."""
        if name in self._prefill.instances:
            return "prefill"
        return "decode" if name in self._decode.instances else None

    def decisions(self, limit: int, prefix: str, now: float, num_candidates: int = RUNNERS_UP + 1) -> list[Decision]:
        """The latest decisions, newest first, of requests whose id begins so."""
        return self._log.latest(limit, prefix, now, num_candidates=num_candidates)

    def check(self) -> list[str]:
        """What does not add up; for tests."""
        decodes = self._decode.instances.values()
        owners = [(prefill.name, owner) for prefill in self._prefill.instances.values() for owner in prefill.work]
        owners += [(decode.name, owner) for decode in decodes for owner in decode.assigned]
        problems = unended(owners, self._requests)
        if self._shares is not None and self._shares.num_requests != len(self._requests):
            problems.append(
                f"tenants hold {self._shares.num_requests} requests, of which {len(self._requests)} have not ended"
            )
        problems += [
            f"{decode.name} has promised {-decode.free_blocks()} blocks too many"
            for decode in decodes
            if decode.free_blocks() < 0
        ]
        problems += [
            f"{decode.name} has promised another number of blocks than its requests have"
            for decode in decodes
            if decode.offer.num_blocks - decode.free_blocks() != sum(one.num_blocks for one in decode.assigned.values())
        ]
        return problems

    def _arrived(self, arrival: e.RequestArrived, now: float) -> list[c.Command]:
        table = self._prefill.serving(arrival.model, arrival.fingerprint)
        if table is None:
            reason = f"no prefill instance serves model {arrival.model}"
            return self._turned_away(c.Unavailable(arrival.request_id, reason, RETRY_WITHOUT_INSTANCES_S), arrival, now)
        ranking = self._prefill.rank(arrival, table, now)
        if ranking is None:
            return self._turned_away(_too_long(arrival, table.instances), arrival, now)
        best = ranking.best
        ttft_s = best.ttft_s
        own_s = ttft_s - best.queue_s
        allowance = EVERYTHING if self._shares is None else self._shares.allow(arrival, own_s, now)
        asking = Asking(arrival.prompt_tokens, arrival.max_tokens, ttft_s, own_s, allowance)
        decode = self._choose_decode(arrival, asking, table.model, frozenset(), now)
        if not isinstance(decode, DecodeChoice):
            return self._turned_away(decode, arrival, now, ranking)
        request = Request(arrival, best, asking, ranking.match.reach)
        self._requests.add(request)
        if self._shares is not None:
            self._shares.placed(arrival, own_s)
        self._log.add(now, arrival, "dispatched", ranking.reason, ranking=ranking, decode=decode)
        # Counted from now on, so that requests arriving together do not all choose the same instance.
        work = Work(best.transfer_s + best.prefill_s, now, arrival.priority, ranking.num_blocks)
        self._prefill.take_on(table, ranking.chosen, arrival.request_id, work)
        return [self._assign(request, decode, now)]

    def _choose_decode(
        self, arrival: e.RequestArrived, asking: Asking, model: ModelOffer, without: frozenset[str], now: float
    ) -> DecodeChoice | c.Reject | c.Unavailable:
        """A decode instance with room, where admission takes the request. One that has tokens already is always taken."""
        decode = self._decode.choose(arrival, model, without)
        if arrival.resumed or not isinstance(decode, DecodeChoice):
            return decode
        refusal = self._admission.at_arrival(asking, decode.instance, now) or _leaves_no_memory(asking, decode)
        if refusal is None:
            return decode
        return c.Reject(arrival.request_id, refusal.reason, refusal.retry_after_s, cause=refusal.cause)

    def _assign(self, request: Request, choice: DecodeChoice, now: float) -> c.ReserveDecode:
        arrival, name = request.arrival, choice.instance.name
        request.decode, request.tbt_s = name, choice.tbt_s.item(choice.row)
        assigned = Assigned(
            choice.num_blocks,
            arrival.prompt_tokens,
            arrival.max_tokens,
            arrival.tenant,
            prefill_ends_at=now + request.asking.ttft_s,
        )
        self._decode.assign(choice, arrival.request_id, assigned)
        return c.ReserveDecode(
            arrival.request_id,
            name,
            arrival.prompt_tokens,
            arrival.max_tokens,
            arrival.deadline,
            matched_blocks=request.score.matched_blocks,
        )

    def _granted(self, request_id: str) -> list[c.Command]:
        request = self._requests.get(request_id)
        if request is None:
            return []  # it ended meanwhile, and its memory was asked to be released then
        request.dispatched = True
        score = request.score
        offer = self._prefill.instances[score.prefill].offer
        dispatch = c.Dispatch(
            request_id,
            score.prefill,
            request.decode,
            matched_tokens=score.matched_blocks * offer.model.block_tokens,
            expected_ttft_s=request.asking.ttft_s,
            expected_tbt_s=request.tbt_s,
        )
        threshold = self._settings.replication_threshold
        if threshold is None or not offer.local_node or request.reach <= score.held_blocks * threshold:
            return [dispatch]
        return [
            dispatch,
            c.CopyBlocks(offer.local_node, request.arrival.block_keys[score.held_blocks : request.reach]),
        ]

    def _refused(self, refusal: e.ReservationRefused, now: float) -> list[c.Command]:
        """The next best decode instance is asked, until none is left. An instance that cannot be reached will soon be there
        again, or be known to have left: what it would have said is no reason to turn a request away."""
        request = self._requests.get(refusal.request_id)
        if request is None:
            return []
        self._decode.release(request.decode, refusal.request_id)
        request.refused_by |= {request.decode}
        request.unanswered |= not refusal.full
        model = self._prefill.instances[request.score.prefill].offer.model
        decode = self._choose_decode(request.arrival, request.asking, model, request.refused_by, now)
        if isinstance(decode, DecodeChoice):
            return [self._assign(request, decode, now)]
        self._forget(refusal.request_id, now)
        reason = f"{decode.reason}; {request.decode} said: {refusal.reason}"
        kind = c.Unavailable if request.unanswered else c.Reject
        answer = kind(refusal.request_id, reason, decode.retry_after_s)
        return self._turned_away(answer, request.arrival, now)

    def _prefill_ended(self, event: e.PrefillEnded, now: float) -> list[c.Command]:
        request = self._requests.get(event.request_id)
        if request is None or request.prefilled:
            return []
        request.prefilled = True
        if self._shares is not None:
            self._shares.prefilled(request.arrival, request.asking.own_s)
        observed = Observed(request.arrival.prompt_tokens, event.cached_tokens, event.computed_s)
        self._prefill.ended(request.score.prefill, event.request_id, now, observed)
        decode = self._decode.instances.get(request.decode)
        assigned = decode.assigned.get(event.request_id) if decode else None
        if decode is None or assigned is None or event.finished:
            return []
        if not request.arrival.resumed and (refusal := self._admission.at_decode(request.asking, decode, now)):
            self._forget(event.request_id, now)
            self._log.add(now, request.arrival, "rejected", refusal.reason, "decode")
            reject = c.Reject(
                event.request_id, refusal.reason, refusal.retry_after_s, cause=refusal.cause, stage="decode"
            )
            return [c.ReleaseDecode(event.request_id, decode.name), reject]
        assigned.decoding_since = now
        return []

    def _request_ended(self, event: e.RequestEnded, now: float) -> list[c.Command]:
        request = self._requests.get(event.request_id)
        decode = self._decode.instances.get(request.decode) if request else None
        assigned = decode.assigned.get(event.request_id) if decode else None
        if assigned is not None and event.output_tokens:
            self._admission.decoded(assigned, event.output_tokens, now)
        release = self._ended(event.request_id, now)
        return [] if event.released else release

    def _ended(self, request_id: str, now: float) -> list[c.Command]:
        request = self._forget(request_id, now)
        return [] if request is None else [c.ReleaseDecode(request_id, request.decode)]

    def _expired(self, now: float) -> list[c.Command]:
        """Requests whose deadline has passed, whoever forgot to say that they ended."""
        commands: list[c.Command] = []
        for request in self._requests.late(now):
            request_id = request.arrival.request_id
            commands += self._ended(request_id, now)
            if not request.dispatched:
                commands.append(c.Unavailable(request_id, "the request's deadline has passed", SHORTEST_RETRY_S))
        return commands

    def _plan_roles(self, now: float) -> list[c.Command]:
        """At most one instance is told to change; it gets no more requests."""
        if self._balance is None:
            return []
        switches = self._balance.look(self._prefill, self._decode, now)
        for switch in switches:
            self._drain(switch.instance)
        return [*switches]

    def _joined(self, event: e.InstanceJoined, now: float) -> None:
        if self._balance is not None:
            self._balance.planner.joined(event.name, event.role, now)
        if event.role == "prefill":
            self._prefill.join(PrefillInstance(event.name, event.offer))
        else:
            self._decode.join(DecodeInstance(event.name, event.offer))

    def _take_again(self, name: str) -> None:
        self._prefill.take_again(name)
        self._decode.take_again(name)
        if self._balance is not None:
            self._balance.planner.refused(name)

    def _drain(self, name: str) -> None:
        """What was placed there stays; nothing more goes there."""
        self._prefill.drain(name)
        self._decode.drain(name)

    def _left(self, name: str, now: float) -> list[c.Command]:
        """What was not dispatched yet cannot go there; what was, the gateway finds out about."""
        self._prefill.leave(name)
        self._decode.leave(name)
        commands: list[c.Command] = []
        for request in self._requests.waiting_for(name):
            request_id = request.arrival.request_id
            commands += self._ended(request_id, now)
            commands.append(c.Unavailable(request_id, f"instance {name} has left", SHORTEST_RETRY_S))
        return commands

    def _forget(self, request_id: str, now: float) -> Request | None:
        request = self._requests.pop(request_id)
        if request is None:
            return None
        self._prefill.ended(request.score.prefill, request_id, now)
        self._decode.release(request.decode, request_id)
        if self._shares is not None:
            if not request.prefilled:
                self._shares.prefilled(request.arrival, request.asking.own_s)
            self._shares.ended(request.arrival)
        return request

    def _turned_away(
        self,
        answer: c.Reject | c.Unavailable,
        arrival: e.RequestArrived,
        now: float,
        ranking: Ranking | None = None,
    ) -> list[c.Command]:
        outcome: Outcome = "rejected" if isinstance(answer, c.Reject) else "unavailable"
        self._log.add(now, arrival, outcome, answer.reason, ranking=ranking)
        return [answer]


def _models(instances: Iterable[PrefillInstance | DecodeInstance]) -> list[ModelOffer]:
    """Of those that take requests."""
    return [instance.offer.model for instance in instances if not instance.draining]


def _leaves_no_memory(asking: Asking, choice: DecodeChoice) -> Refusal | None:
    part = asking.allowance.tbt_part
    if part == 1.0:
        return None
    free, held = choice.free_blocks.item(choice.row) - choice.num_blocks, choice.table.num_blocks.item(choice.row)
    if free >= held * (1 - part):
        return None
    left = f"{free} of {held} blocks of KV memory would be left to others at {choice.instance.name}"
    return Refusal("share", f"{asking.allowance.explain_tbt()}; {left}", SHORTEST_RETRY_S)


def _too_long(arrival: e.RequestArrived, prefill: Sequence[PrefillInstance]) -> c.Reject:
    """Waiting does not make memory larger."""
    needed = prompt_blocks(arrival, prefill[0].offer.model)
    most = max(instance.offer.num_blocks for instance in prefill)
    reason = f"no prefill instance has the {needed} blocks of KV memory that the prompt needs (the largest has {most})"
    return c.Reject(arrival.request_id, reason, SHORTEST_RETRY_S, hopeless=True)
