"""The decode instances, and which of them takes a request."""

from __future__ import annotations

import random
from collections.abc import Set
from typing import Final

import numpy as np
from msgspec import Struct

from mooncake_core.conductor import commands as c
from mooncake_core.conductor import events as e
from mooncake_core.conductor.admission.objectives import SHORTEST_RETRY_S
from mooncake_core.conductor.cost import Floats, Ints
from mooncake_core.conductor.instances import Assigned, DecodeInstance, identity
from mooncake_core.conductor.tables import DecodeTable, named, smallest
from mooncake_core.wire.messages.membership import InstanceLoad, ModelOffer

RETRY_WITHOUT_INSTANCES_S: Final = 2.0


class DecodeChoice(Struct, frozen=True, gc=False):
    """What was expected of each instance, and which one takes the request."""

    table: DecodeTable
    tbt_s: Floats
    """Infinite where it may not go, or finds no room."""
    free_blocks: Ints
    row: int
    instance: DecodeInstance
    num_blocks: int
    """That the request needs."""


class DecodePool:
    """Instances by name."""

    def __init__(self, rng: random.Random) -> None:
        self.instances: dict[str, DecodeInstance] = {}
        self._random = rng
        self._tables: dict[tuple[str, bytes], DecodeTable] = {}

    def join(self, instance: DecodeInstance) -> None:
        """It can take requests."""
        self.instances[instance.name] = instance
        self._tables.clear()

    def leave(self, name: str) -> None:
        """It is gone."""
        self.instances.pop(name, None)
        self._tables.clear()

    def drain(self, name: str) -> None:
        """It gets no more requests."""
        if instance := self.instances.get(name):
            instance.draining = True
            self._tables.clear()

    def take_again(self, name: str) -> None:
        """It gets requests as before it was drained."""
        if instance := self.instances.get(name):
            instance.draining = False
            self._tables.clear()

    def assign(self, choice: DecodeChoice, request_id: str, assigned: Assigned) -> None:
        """A request will run where it was just decided."""
        instance = choice.instance
        instance.assign(request_id, assigned)
        choice.table.refresh(instance)

    def release(self, name: str, request_id: str) -> None:
        """A request runs there no more."""
        if instance := self.instances.get(name):
            instance.release(request_id)
            self._refresh(instance)

    def report(self, name: str, load: InstanceLoad) -> None:
        """An instance's own word on its load, if it is one of these."""
        if instance := self.instances.get(name):
            instance.report(load)
            self._refresh(instance)

    def taking(self) -> list[DecodeInstance]:
        """Instances that take requests."""
        return [instance for instance in self.instances.values() if not instance.draining]

    def choose(
        self, arrival: e.RequestArrived, model: ModelOffer, without: Set[str] = frozenset()
    ) -> DecodeChoice | c.Reject | c.Unavailable:
        """The one with the smallest predicted TBT that has room."""
        table = self._serving(model)
        if table is None:
            reason = f"no decode instance serves model {arrival.model}"
            return c.Unavailable(arrival.request_id, reason, RETRY_WITHOUT_INSTANCES_S)
        needed = -(-(arrival.prompt_tokens + arrival.max_tokens) // model.block_tokens)
        tbt_s = table.tbt_with_s(arrival.prompt_tokens)
        if not table.all_have(needed):
            tbt_s[table.free_blocks < needed] = np.inf
        if without:
            tbt_s[named(table.rows, without)] = np.inf
        if arrival.avoid:
            others = np.where(named(table.rows, arrival.avoid), np.inf, tbt_s)
            tbt_s = tbt_s if np.isinf(others).all() else others
        row = smallest(tbt_s, self._random)
        if tbt_s.item(row) == np.inf:
            return _no_room(arrival, table, without, needed)
        return DecodeChoice(table, tbt_s, table.free_blocks.copy(), row, table.instances[row], needed)

    def _serving(self, model: ModelOffer) -> DecodeTable | None:
        wanted = identity(model)
        table = self._tables.get(wanted)
        if table is None:
            alike = [
                instance
                for instance in self.instances.values()
                if identity(instance.offer.model) == wanted and not instance.draining
            ]
            if not alike:
                return None
            table = self._tables[wanted] = DecodeTable(alike)
        return table

    def _refresh(self, instance: DecodeInstance) -> None:
        table = self._tables.get(identity(instance.offer.model))
        if table is not None:
            table.refresh(instance)


def _no_room(arrival: e.RequestArrived, table: DecodeTable, without: Set[str], needed: int) -> c.Reject:
    asked = ~named(table.rows, without)
    if not asked.any():
        reason = f"no decode instance serves model {arrival.model} that has room"
        return c.Reject(arrival.request_id, reason, RETRY_WITHOUT_INSTANCES_S)
    most = int(table.num_blocks[asked].max())
    reason = f"no decode instance has {needed} blocks of KV memory free (the largest has {most} in all)"
    return c.Reject(arrival.request_id, reason, SHORTEST_RETRY_S, hopeless=needed > most)
