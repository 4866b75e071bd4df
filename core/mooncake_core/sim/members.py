"""The instances of a disaggregated cluster: they join, report their load, change roles, fail and come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from mooncake_core.conductor import events as e
from mooncake_core.sim.block_cache import BlockCache
from mooncake_core.sim.decode import DecodeInstance
from mooncake_core.sim.pipeline import Pipeline
from mooncake_core.sim.prefill import PrefillInstance
from mooncake_core.sim.series import mean
from mooncake_core.sim.shapes import Costs, HostShape, ModelShape
from mooncake_core.wire.messages.membership import CostHint, InstanceLoad, InstanceOffer, ModelOffer

if TYPE_CHECKING:
    from mooncake_core.sim.conducted import ConductedCluster

Role = Literal["prefill", "decode"]
_LOOK_AGAIN_S: Final = 0.25
"""How often an instance that drains looks whether it has anything left."""


class Members:
    """Makes instances, and takes them away."""

    def __init__(
        self,
        cluster: ConductedCluster,
        model: ModelShape,
        host: HostShape,
        costs: Costs,
        hint: CostHint,
        new_pipeline: Callable[[], Pipeline],
        new_cache: Callable[[], BlockCache],
    ) -> None:
        """`costs` are what computations take, `hint` is what instances say of it when they join."""
        self._cluster = cluster
        self._model = model
        self._host = host
        self._costs = costs
        self._hints = {"prefill": _of_group(hint, new_pipeline().stages), "decode": hint}
        self._new_pipeline = new_pipeline
        self._new_cache = new_cache
        self.prefill: dict[str, PrefillInstance] = {}
        self.decode: dict[str, DecodeInstance] = {}
        self._roles: dict[str, Role] = {}
        """Of all that have ever joined, the latest."""

    def join(self, name: str, role: Role) -> None:
        """An instance is there; its node too, with what it had before if it is an old one."""
        cluster = self._cluster
        if name not in self._roles:
            cluster.network.add_node(name, self._host.nic_bytes_per_s)
            cluster.pool.add_node(name, self._new_cache())
        self._roles[name] = role
        if role == "prefill":
            self.prefill[name] = PrefillInstance(
                name,
                cluster.timeline,
                self._new_pipeline(),
                num_layers=self._model.num_layers,
                load=cluster.load,
                begun=cluster.begun,
                ended=cluster.ended,
            )
        else:
            self.decode[name] = DecodeInstance(
                name, cluster.timeline, self._costs, num_blocks=self._host.hbm_blocks, ended=cluster.decoded
            )
        cluster.tell(e.InstanceJoined(name, role, self._offer(name, role)))

    def fail(self, name: str, *, with_node: bool) -> None:
        """An instance is gone at once, and what its node had as well where the host is gone."""
        jobs = self._cluster.jobs_of(name)
        if prefill := self.prefill.pop(name, None):
            prefill.fail()
        if decode := self.decode.pop(name, None):
            decode.fail()
        if with_node:
            self._cluster.pool.clear(name)
        self._cluster.tell(e.InstanceLeft(name))
        self._cluster.lose(jobs, name)

    def come_back(self, name: str) -> None:
        """An instance that failed joins again, in its latest role; a new one in the role that its name begins with."""
        if name not in self.prefill and name not in self.decode:
            self.join(name, self._roles.get(name, "decode" if name.startswith("decode") else "prefill"))

    def switch(self, name: str, role: Role) -> None:
        """An instance finishes what it has, and joins again in the other role."""
        if self._roles.get(name) in (None, role) or not (name in self.prefill or name in self.decode):
            return
        self._cluster.tell(e.InstanceDraining(name))
        self._switch_when_idle(name, role)

    def report(self) -> None:
        """Instances that have something to do say how much."""
        for name, prefill in self.prefill.items():
            if prefill.num_waiting or prefill.num_running:
                load = InstanceLoad(
                    queued_requests=prefill.num_waiting,
                    running_requests=prefill.num_running,
                    queued_tokens=prefill.queued_tokens(),
                    num_blocks=self._host.hbm_blocks,
                )
                self._cluster.tell(e.LoadReported(name, load))
        for name, decode in self.decode.items():
            if decode.num_running:
                load = InstanceLoad(
                    running_requests=decode.num_running,
                    context_tokens=decode.context_tokens,
                    free_blocks=decode.free_blocks,
                    num_blocks=decode.num_blocks,
                    step_s=decode.step_s,
                )
                self._cluster.tell(e.LoadReported(name, load))

    def names(self) -> list[str]:
        """Of those that are there."""
        return [*self.prefill, *self.decode]

    def busy_s(self) -> dict[str, float]:
        """Time spent computing, by instance, and the mean of each pool's."""
        prefill = {name: one.busy_s for name, one in self.prefill.items()}
        decode = {name: one.busy_s() for name, one in self.decode.items()}
        pools = {"prefill": mean(list(prefill.values())), "decode": mean(list(decode.values()))}
        return {**pools, **prefill, **decode}

    def _switch_when_idle(self, name: str, role: Role) -> None:
        cluster = self._cluster
        if not (name in self.prefill or name in self.decode):
            return  # it failed meanwhile
        if cluster.jobs_of(name):
            cluster.timeline.at(cluster.timeline.now + _LOOK_AGAIN_S, self._switch_when_idle, name, role)
            return
        self.fail(name, with_node=False)
        self.join(name, role)

    def _offer(self, name: str, role: Role) -> InstanceOffer:
        model = self._model
        return InstanceOffer(
            model=ModelOffer(
                name=model.name,
                fingerprint=b"simulated",
                block_tokens=model.block_tokens,
                block_bytes=model.block_bytes,
                max_context_tokens=2**31,
                vocab_size=2,
            ),
            num_blocks=self._host.hbm_blocks,
            local_node=name,
            cost=self._hints[role],
        )


def _of_group(hint: CostHint, stages: int) -> CostHint:
    """Prompts follow each other through the stages of a prefill group: each keeps it busy for its part of the time."""
    return msgspec.structs.replace(
        hint,
        prefill_base_s=hint.prefill_base_s / stages,
        prefill_per_token_s=hint.prefill_per_token_s / stages,
        prefill_per_token2_s=hint.prefill_per_token2_s / stages,
    )
