"""The decode instances, and which of them takes a request."""

from __future__ import annotations

import random
from collections.abc import Set
from typing import Final

from mooncake_core.conductor import commands as c
from mooncake_core.conductor import events as e
from mooncake_core.conductor.admission.objectives import SHORTEST_RETRY_S
from mooncake_core.conductor.instances import DecodeInstance, identity
from mooncake_core.conductor.requests import blocks_for
from mooncake_core.wire.messages.membership import ModelOffer

RETRY_WITHOUT_INSTANCES_S: Final = 2.0


class DecodePool:
    """Instances by name."""

    def __init__(self, rng: random.Random) -> None:
        self.instances: dict[str, DecodeInstance] = {}
        self._random = rng

    def choose(
        self, arrival: e.RequestArrived, model: ModelOffer, without: Set[str] = frozenset()
    ) -> DecodeInstance | c.Reject | c.Unavailable:
        """The one with the smallest predicted TBT that has room."""
        alike = [
            instance
            for instance in self.instances.values()
            if identity(instance.offer.model) == identity(model)
            and not instance.draining
            and instance.name not in without
        ]
        if not alike:
            reason = f"no decode instance serves model {arrival.model}" + (" that has room" if without else "")
            kind = c.Reject if without else c.Unavailable
            return kind(arrival.request_id, reason, RETRY_WITHOUT_INSTANCES_S)
        needed = blocks_for(arrival, model)
        fitting = [instance for instance in alike if instance.free_blocks() >= needed]
        if not fitting:
            most = max(instance.offer.num_blocks for instance in alike)
            reason = f"no decode instance has {needed} blocks of KV memory free (the largest has {most} in all)"
            return c.Reject(arrival.request_id, reason, SHORTEST_RETRY_S, hopeless=needed > most)
        self._random.shuffle(fitting)
        return min(
            fitting, key=lambda instance: (instance.name in arrival.avoid, instance.tbt_with(arrival.prompt_tokens))
        )
