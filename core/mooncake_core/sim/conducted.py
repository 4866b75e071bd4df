"""A disaggregated cluster under the live Conductor: its commands become simulated events, and what happens is told to it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from mooncake_core.conductor import commands as c
from mooncake_core.conductor import events as e
from mooncake_core.conductor.conductor import Conductor
from mooncake_core.sim.decode import DecodeInstance
from mooncake_core.sim.job import Job, Outcome
from mooncake_core.sim.members import Members
from mooncake_core.sim.network import Flow, Network
from mooncake_core.sim.pool import Pool, Source
from mooncake_core.sim.prefill import Loaded, PrefillInstance
from mooncake_core.sim.series import Sample, mean
from mooncake_core.sim.shapes import HostShape, ModelShape
from mooncake_core.sim.timeline import Timeline

MOST_ATTEMPTS: Final = 4
PATIENCE_S: Final = 20.0
"""A request waits so long for instances that can serve it, as at the gateway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConductedSettings:
    """What a disaggregated cluster does beside scheduling."""

    layerwise: bool = True
    """KV leaves for the decode instance layer by layer while the prompt is computed; else when it is complete."""
    replicate: bool = True
    """A node keeps what its instance fetched or computed though another node has it (FAST'25, section 4.2)."""
    max_tokens: int
    """That requests ask for; the length of their answers is not known before."""
    ttft_slo_s: float = 30.0
    tbt_slo_s: float = 0.1


@dataclass(slots=True)
class _Moving:
    """What of a job is on its way."""

    kv_bytes: float
    """Of the prompt, and of what was generated before an instance was lost."""
    computed_at: float = math.inf
    """When its prompt will be, or was."""
    layer_s: float = 0.0
    """Of that computation, for one layer."""
    flows: list[Flow] = field(default_factory=list)
    pinned: list[tuple[str, Sequence[bytes]]] = field(default_factory=list)


class ConductedCluster:
    """Drives the Conductor. `ended` hears of each job once, with its outcome."""

    def __init__(
        self,
        timeline: Timeline,
        conductor: Conductor,
        model: ModelShape,
        host: HostShape,
        settings: ConductedSettings,
        *,
        members: Callable[[ConductedCluster], Members],
        ended: Callable[[Job], None],
    ) -> None:
        self.timeline = timeline
        self.network = Network(timeline)
        self.pool = Pool(self.tell)
        self.conductor = conductor
        self._model = model
        self._host = host
        self._settings = settings
        self._ended = ended
        self._jobs: dict[str, Job] = {}
        """By the id under which the Conductor knows them."""
        self._moving: dict[Job, _Moving] = {}
        self._tick_at = math.inf
        self.members = members(self)

    @property
    def num_jobs(self) -> int:
        """That have arrived and not ended."""
        return len(self._jobs)

    def arrive(self, job: Job) -> None:
        """A request comes, or comes again after an instance was lost."""
        self._jobs[job.request_id] = job
        self.tell(
            e.RequestArrived(
                request_id=job.request_id,
                model=self._model.name,
                prompt_tokens=job.context_tokens,
                max_tokens=max(1, self._settings.max_tokens - job.generated),
                block_keys=job.keys,
                tenant=job.tenant,
                deadline=math.inf,
                avoid=job.lost_at,
                priority=job.priority,
                resumed=job.generated > 0,
            )
        )

    def tell(self, event: e.Event) -> None:
        """The Conductor hears of something, and what it commands is done."""
        for command in self.conductor.handle(event, self.timeline.now):
            self._execute(command)
        deadline = self.conductor.next_deadline()
        if deadline is not None and deadline < self._tick_at:
            self._tick_at = deadline
            self.timeline.at(deadline, self._tick)

    def busy_s(self) -> dict[str, float]:
        """Time spent computing, by instance and pool."""
        return self.members.busy_s()

    def report(self) -> None:
        """Instances tell the Conductor how much they have to do."""
        self.members.report()

    def sample(self, rejected: int) -> Sample:
        """The load now, over the objectives."""
        members, settings = self.members, self._settings
        return Sample(
            at_s=self.timeline.now,
            waiting=sum(one.num_waiting for one in members.prefill.values()),
            decoding=sum(one.num_running for one in members.decode.values()),
            prefill_load=mean([one.backlog_s() for one in members.prefill.values()]) / settings.ttft_slo_s,
            decode_load=mean([one.step_s for one in members.decode.values()]) / settings.tbt_slo_s,
            network_load=mean([self.network.utilisation(name) for name in members.names()]),
            rejected=rejected,
            pool_blocks=len(self.pool),
        )

    def load(self, instance: PrefillInstance, job: Job) -> None:
        """A prefill instance takes a job: its prefix comes from the local node and, where it is to, from others."""
        now, name, model = self.timeline.now, instance.name, self._model
        blocks, local, loaded, sources = self.pool.prefix(name, job.keys, job.matched_tokens // model.block_tokens)
        moving = self._moving[job] = _Moving(job.context_tokens * model.kv_bytes_per_token)
        load_s = self._load_s(name, loaded, sources)
        self.pool.use(name, job.keys[:local], now)
        self._pin(moving, name, job.keys[:local])
        for source in sources:
            self.pool.use(source.node, source.keys, now)
            self._pin(moving, source.node, source.keys)
        fetched = sum(len(source.keys) for source in sources)
        local_s = model.block_bytes * ((blocks - fetched) / self._host.device_bytes_per_s)
        fetch_s = fetched * model.block_bytes / self._host.nic_bytes_per_s
        first_s = load_s + max(local_s, fetch_s) / model.num_layers
        if not job.prefilled:
            job.cached_tokens = blocks * model.block_tokens
            lower = loaded + sum(len(source.keys) for source in sources if source.lower)
            job.loaded_tokens = lower * model.block_tokens
        prefix = Loaded(blocks * model.block_tokens, now + first_s, now + load_s + local_s)
        if not sources:
            instance.loaded(job, prefix)
        elif load_s:
            self.timeline.at(now + load_s, self._fetch, instance, job, moving, prefix, sources)
        else:
            self._fetch(instance, job, moving, prefix, sources)

    def begun(self, instance: PrefillInstance, job: Job, end: float, duration_s: float) -> None:
        """A prompt is being computed: its KV follows to the decode instance."""
        job.prefill_s += duration_s
        moving = self._moving[job]
        moving.computed_at, moving.layer_s = end, (end - self.timeline.now) / self._model.num_layers
        if self._settings.layerwise and job.missing_tokens > 1:
            self._stream(job, cap=moving.kv_bytes / max(end - self.timeline.now, 1e-9))

    def ended(self, instance: PrefillInstance, job: Job, duration_s: float) -> None:
        """A prompt is computed: the first token is there, and blocks that others may use."""
        now = self.timeline.now
        matched = job.cached_tokens
        job.prefilled = True
        job.give_token(now)
        keys = job.keys if self._settings.replicate else [key for key in job.keys if key not in self.pool]
        self.pool.store(instance.name, keys, now)
        request_id = job.request_id
        # A group computes several prompts at once: what one takes from the others is its share.
        share_s = duration_s / instance.stages
        self.tell(e.PrefillEnded(request_id, matched, share_s, finished=not job.missing_tokens))
        if self._jobs.get(request_id) is not job:
            return  # it was rejected now
        if not job.missing_tokens:
            self._complete(job)
        elif not self._settings.layerwise:
            self._stream(job, cap=math.inf)

    def decoded(self, instance: DecodeInstance, job: Job) -> None:
        """A request has all its tokens."""
        self._complete(job)

    def lose(self, jobs: Sequence[Job], name: str) -> None:
        """An instance is gone with what it had to do, which is begun anew elsewhere."""
        for job in jobs:
            request_id = job.request_id
            if self._jobs.pop(request_id, None) is None:
                continue
            self._stop_moving(job)
            self._let_go(job)
            self.tell(e.RequestEnded(request_id))
            job.attempt += 1
            job.dispatched = job.joined = False
            job.lost_at = [*job.lost_at, name]
            if job.attempt == MOST_ATTEMPTS:
                self._end(job, "unavailable", "decode", f"lost with {job.attempt} instances in turn")
            else:
                self.arrive(job)

    def jobs_of(self, name: str) -> list[Job]:
        """Dispatched jobs that still need an instance."""
        return [
            job
            for job in self._jobs.values()
            if job.dispatched and (job.decode == name or (job.prefill == name and not job.joined))
        ]

    def _execute(self, command: c.Command) -> None:
        match command:
            case c.ReserveDecode():
                self._reserve(command)
            case c.Dispatch():
                self._dispatch(command)
            case c.Reject():
                self._refuse(command)
            case c.Unavailable(request_id=request_id, reason=reason, retry_after_s=retry_after_s):
                self._wait(request_id, reason, retry_after_s)
            case c.SwitchRole(instance=name, role=role):  # after what is going on now, such as a round of reports
                self.timeline.at(self.timeline.now, self.members.switch, name, role)
            case c.CopyBlocks():
                pass  # nodes keep what their instances fetch or compute: `replicate`
            case c.ReleaseDecode(request_id=request_id, decode=decode):
                if instance := self.members.decode.get(decode):
                    instance.release(request_id)

    def _reserve(self, command: c.ReserveDecode) -> None:
        instance = self.members.decode.get(command.decode)
        blocks = self._model.blocks(command.prompt_tokens + command.max_tokens)
        if instance is not None and instance.reserve(command.request_id, blocks):
            self.tell(e.ReservationGranted(command.request_id))
        else:
            self.tell(e.ReservationRefused(command.request_id, "no memory is free"))

    def _dispatch(self, command: c.Dispatch) -> None:
        job = self._jobs[command.request_id]
        job.dispatched, job.waiting_since = True, -1.0
        job.prefill, job.decode = command.prefill, command.decode
        job.matched_tokens = command.matched_tokens
        job.expected_ttft_s, job.expected_tbt_s = command.expected_ttft_s, command.expected_tbt_s
        self.members.prefill[command.prefill].submit(job)

    def _refuse(self, command: c.Reject) -> None:
        job = self._jobs.pop(command.request_id, None)
        if job is None:
            return
        if job.dispatched:
            self._let_go(job)
            self._stop_moving(job)
        job.cause = command.cause
        self._end(job, "rejected", command.stage, command.reason)

    def _wait(self, request_id: str, reason: str, retry_after_s: float) -> None:
        """Nobody can serve it now; it asks again until its patience is over."""
        job = self._jobs.pop(request_id, None)
        if job is None:
            return
        job.waiting_since = self.timeline.now if job.waiting_since < 0 else job.waiting_since
        if self.timeline.now + retry_after_s - job.waiting_since > PATIENCE_S:
            self._end(job, "unavailable", "arrival", reason)
        else:
            self.timeline.at(self.timeline.now + retry_after_s, self.arrive, job)

    def _let_go(self, job: Job) -> None:
        if prefill := self.members.prefill.get(job.prefill):
            prefill.give_up(job)
        if decode := self.members.decode.get(job.decode):
            decode.give_up(job)
            decode.release(job.request_id)

    def _load_s(self, name: str, loaded: int, sources: Sequence[Source]) -> float:
        """Until what lies below DRAM is in DRAM, at all nodes at once: as in the pool, nothing is read before."""
        blocks = Counter({name: loaded})
        for source in sources:
            blocks[source.node] += len(source.keys) if source.lower else 0
        return max(blocks.values()) * self._model.block_bytes / self._host.ssd_bytes_per_s

    def _fetch(
        self, instance: PrefillInstance, job: Job, moving: _Moving, prefix: Loaded, sources: Sequence[Source]
    ) -> None:
        if self._moving.get(job) is not moving:
            return  # it was given up while blocks were loaded
        missing = dict.fromkeys(range(len(sources)))
        for number, source in enumerate(sources):
            done = partial(self._fetched, instance, job, prefix, missing, number)
            size = len(source.keys) * self._model.block_bytes
            moving.flows.append(self.network.start(source.node, instance.name, size, done))

    def _fetched(
        self, instance: PrefillInstance, job: Job, prefix: Loaded, missing: dict[int, None], number: int
    ) -> None:
        del missing[number]
        if not missing:
            self._moving[job].flows.clear()
            instance.loaded(job, prefix._replace(last_layer_at=max(prefix.last_layer_at, self.timeline.now)))

    def _stream(self, job: Job, *, cap: float) -> None:
        arrived = partial(self._streamed, job, job.attempt)
        moving = self._moving[job]
        moving.flows.append(self.network.start(job.prefill, job.decode, moving.kv_bytes, arrived, cap=cap))

    def _streamed(self, job: Job, attempt: int) -> None:
        """All KV has come, if there had been something to send all the time: in truth the first layer had to be computed
        first or, where the network is the faster, the last one sent after that."""
        moving = self._moving[job]
        moving.flows.clear()
        if not self._settings.layerwise:
            self._join(job, attempt)
            return
        sent_s = moving.kv_bytes / self._model.num_layers / self._host.nic_bytes_per_s
        end = max(self.timeline.now, moving.computed_at) + min(moving.layer_s, sent_s)
        self.timeline.at(end, self._join, job, attempt)

    def _join(self, job: Job, attempt: int) -> None:
        if job.attempt != attempt or job not in self._moving:
            return
        self._stop_moving(job)
        job.joined = True
        self.members.decode[job.decode].submit(job)

    def _complete(self, job: Job) -> None:
        request_id = job.request_id
        del self._jobs[request_id]
        self._stop_moving(job)
        if decode := self.members.decode.get(job.decode):
            decode.release(request_id)
        self.tell(e.RequestEnded(request_id, released=True, output_tokens=job.generated))
        self._end(job, "completed", "", "")

    def _end(self, job: Job, outcome: Outcome, stage: str, reason: str) -> None:
        job.outcome = outcome
        job.stage, job.reason = stage, reason
        job.ended_at = self.timeline.now
        self._ended(job)

    def _pin(self, moving: _Moving, node: str, keys: Sequence[bytes]) -> None:
        self.pool.node(node).pin(keys)
        moving.pinned.append((node, keys))

    def _stop_moving(self, job: Job) -> None:
        moving = self._moving.pop(job, None)
        if moving is None:
            return
        for flow in moving.flows:
            self.network.stop(flow)
        for node, keys in moving.pinned:
            self.pool.node(node).unpin(keys)

    def _tick(self) -> None:
        self._tick_at = math.inf
        self.tell(e.Tick())
