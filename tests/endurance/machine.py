"""A random user of a real cluster, whose processes die meanwhile. See model.py for what must hold."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from mooncake_core.errors import MooncakeError
from mooncake_core.store.client import PutObject, PutOptions
from mooncake_core.store.reading import Destination
from mooncake_core.wire.messages.pool import NewObject
from mooncake_core.wire.messages.tasks import (
    CopyObjects,
    QueryTasks,
    ReplicateObjects,
    TaskReport,
    TasksStarted,
)
from tests.endurance.leaks import Leaks
from tests.endurance.model import Model
from tests.endurance.processes import MASTER
from tests.endurance.world import TIMEOUT_S, World

KEYS: Final = [f"k{number}" for number in range(12)]
SIZES: Final = [0, 1, 100, 4096, 5000, 65536, 150_000]
NODES: Final = ["n0", "n1", "n2"]
TRIES: Final = 4
CERTAIN_S: Final = 5.0
"""So long a tier may take to tell what it has."""
keys = st.sampled_from(KEYS)
batches = st.lists(keys, min_size=1, max_size=5, unique=True)
sizes = st.sampled_from(SIZES)
nodes = st.sampled_from(NODES)
moments = st.sampled_from([0.0, 0.001, 0.003, 0.01, 0.03, 0.1])
acts = st.tuples(st.sampled_from(["put", "upsert", "get", "get", "remove", "force"]), keys, sizes)
storms = st.lists(st.lists(acts, min_size=1, max_size=8), min_size=2, max_size=5)


class Endurance(RuleBasedStateMachine):
    """One episode; the cluster lives on from one to the next. Subclasses have a world."""

    world: ClassVar[World]
    leaks: ClassVar[Leaks]
    until: ClassVar[float]
    """time.monotonic() after which nothing more is done."""
    counts: ClassVar[dict[str, int]]

    def __init__(self) -> None:
        super().__init__()
        kind = self.world.kind
        self.model = Model(KEYS, lossy=kind == "tight", tiered=kind == "tiered")
        self.shared: set[str] = set()
        """Keys that several use at the same time just now."""
        self.journal: list[str] = []
        self.certain = True
        """Nobody is silent, and nobody else does anything."""

    def do(self, what: str, work: Callable[[], Awaitable[None]], **about: object) -> None:
        """One step, and then all is looked at."""
        if time.monotonic() > self.until or self.world.failure is not None:
            return
        self.counts[what] = self.counts.get(what, 0) + 1
        details = ", ".join(f"{name}={value}" for name, value in about.items())
        self.journal.append(f"{time.strftime('%H:%M:%S')} {what}: {details}")
        self._run(self._step(work))

    def _run(self, work: Coroutine[None, None, None]) -> None:
        """The first failure is what counts: Hypothesis plays it again, and real time does not."""
        try:
            self.world.runner.run(work)
        except BaseException as error:
            error.add_note("\n".join(self.journal))
            self.world.failure = error
            raise

    async def _step(self, work: Callable[[], Awaitable[None]]) -> None:
        await work()
        await self.look()

    # What a user does

    @rule(
        batch=batches,
        size=sizes,
        upsert=st.booleans(),
        replicas=st.sampled_from([1, 2, 2, 2, 3]),
        pin=st.sampled_from([None, None, None, True]),
    )
    def put(self, batch: list[str], size: int, upsert: bool, replicas: int, pin: bool | None) -> None:
        self.do(
            "put",
            lambda: self.put_all(batch, size, upsert=upsert, replicas=replicas, hard_pin=pin),
            batch=batch,
            size=size,
            upsert=upsert,
            replicas=replicas,
            pin=pin,
        )

    @rule(batch=batches, size=sizes, upsert=st.booleans())
    def put_blocking(self, batch: list[str], size: int, upsert: bool) -> None:
        self.do("put (shm)", lambda: self.put_here(batch, size, upsert), batch=batch, size=size, upsert=upsert)

    @rule(batch=batches)
    def get(self, batch: list[str]) -> None:
        self.do("get", lambda: self.get_all(batch), batch=batch)

    @rule(batch=batches, again=st.booleans())
    def get_blocking(self, batch: list[str], again: bool) -> None:
        self.do("get (shm)", lambda: self.get_here(batch, again), batch=batch, again=again)

    @rule(batch=batches, force=st.booleans())
    def remove(self, batch: list[str], force: bool) -> None:
        self.do("remove", lambda: self.remove_all(batch, force), batch=batch, force=force)

    @rule(key=keys, goal=nodes, move=st.booleans())
    def copy(self, key: str, goal: str, move: bool) -> None:
        self.do(
            "copy",
            lambda: self.run_tasks(CopyObjects(keys=[key], target=goal, move=move)),
            key=key,
            goal=goal,
            move=move,
        )

    @rule(batch=batches)
    def replicate(self, batch: list[str]) -> None:
        self.do("replicate", lambda: self.run_tasks(ReplicateObjects(keys=batch, replicas=2)), batch=batch)

    @rule(key=keys, size=sizes, whole=st.booleans())
    def abandon(self, key: str, size: int, whole: bool) -> None:
        self.do("abandoned put", lambda: self.begin_only(key, size, whole), key=key, size=size, whole=whole)

    # What happens to processes

    @rule(node=nodes)
    def kill(self, node: str) -> None:
        self.do("kill", lambda: self.kill_node(node), node=node)

    @rule()
    def start(self) -> None:
        self.do("start", self.start_all)

    @rule(down_s=moments)
    def restart_master(self, down_s: float) -> None:
        self.do("restart of the master", lambda: self.renew_master(down_s), down_s=down_s)

    @rule(node=nodes, batch=batches, again=batches, size=sizes)
    def freeze(self, node: str, batch: list[str], again: list[str], size: int) -> None:
        self.do(
            "freeze", lambda: self.freeze_node(node, batch, again, size), node=node, removed=batch, put=again, size=size
        )

    @rule(storm=storms, victim=st.sampled_from(["", "", *NODES, MASTER]), after_s=moments)
    def storm(self, storm: list[list[tuple[str, str, int]]], victim: str, after_s: float) -> None:
        self.do("storm", lambda: self.all_at_once(storm, victim, after_s), storm=storm, victim=victim, after_s=after_s)

    # How it is done

    async def put_all(
        self, batch: Sequence[str], size: int, *, upsert: bool, replicas: int = 2, hard_pin: bool | None = None
    ) -> None:
        values = [self.model.new_value(size) for _ in batch]
        contents = [value.content() for value in values]  # must live as long as the views
        objects = [PutObject(key=k, pieces=[memoryview(c)]) for k, c in zip(batch, contents, strict=True)]
        for key, value in zip(batch, values, strict=True):
            if key in self.shared:
                self.model.may_be(key, value)
        try:
            codes = await self.world.client.put(
                objects, timeout_s=TIMEOUT_S, replicas=replicas, options=PutOptions(upsert=upsert, hard_pin=hard_pin)
            )
        except MooncakeError:
            codes = ["error"] * len(batch)
        for key, value, code in zip(batch, values, codes, strict=True):
            if key not in self.shared:
                at = set(self.world.master.nodes.get(key, ())) & set(self.world.processes.alive())
                now = time.monotonic()
                self.model.put(key, value, code, at, now, hard_pin=bool(hard_pin), upsert=upsert)

    async def put_here(self, batch: Sequence[str], size: int, upsert: bool) -> None:
        values = [self.model.new_value(size) for _ in batch]
        contents = [value.content() for value in values]
        objects = [PutObject(key=k, pieces=[memoryview(c)]) for k, c in zip(batch, contents, strict=True)]
        try:
            codes = self.world.blocking.put(objects, replicas=2, options=PutOptions(upsert=upsert))
        except MooncakeError:
            codes = ["error"] * len(batch)
        for key, value, code in zip(batch, values, codes, strict=True):
            self.model.put(key, value, code, (), time.monotonic(), upsert=upsert)

    async def get_all(self, batch: Sequence[str]) -> None:
        async def read(wanted: Sequence[str], destination: Destination) -> list[str]:
            return await self.world.client.get_into(wanted, destination, timeout_s=TIMEOUT_S)

        await self.read(batch, read)

    async def get_here(self, batch: Sequence[str], again: bool) -> None:
        async def read(wanted: Sequence[str], destination: Destination) -> list[str]:
            return self.world.blocking.get(wanted, destination)

        for _ in range(1 + again):  # the second time under the lease that is remembered
            await self.read(batch, read)

    async def read(
        self, batch: Sequence[str], read: Callable[[Sequence[str], Destination], Awaitable[list[str]]]
    ) -> None:
        """What must be there must come; a busy machine may be too slow for a lease, but not again and again."""
        left = list(batch)
        for _ in range(TRIES):
            got: dict[int, bytearray] = {}

            def destination(index: int, size: int, got: dict[int, bytearray] = got) -> list[memoryview]:
                got[index] = bytearray(size)
                return [memoryview(got[index])]

            try:
                codes = await read(left, destination)
            except MooncakeError:
                return
            for index, (key, code) in enumerate(zip(left, codes, strict=True)):
                if not code:
                    self.model.found(key, bytes(got[index]), narrow=key not in self.shared)
            failed = {key: code for key, code in zip(left, codes, strict=True) if code}
            left = [key for key in failed if not self.model.may_be_missed(key)]
            if not left or not self.certain:
                return
        assert self.world.kind == "tiered", f"{failed}, but these are there: {[self.model.keys[key] for key in left]}"

    async def can_be_read(self, key: str) -> bool:
        """Whether it comes, from a tier too, or the master knows of none."""
        (about,) = await self.world.describe([key])
        if about is None:
            return True
        got = bytearray(about.size_bytes)
        (came,) = await self.world.client.get([key], [[memoryview(got)]], timeout_s=TIMEOUT_S)
        if came:
            self.model.found(key, bytes(got), narrow=True)
        return came

    async def remove_all(self, batch: Sequence[str], force: bool) -> None:
        certain = self.certain and self.world.kind != "tiered" and len(self.world.processes.alive()) == len(NODES)
        try:
            codes = await self.world.client.remove(batch, timeout_s=TIMEOUT_S, force=force)
        except MooncakeError:
            codes = ["error"] * len(batch)
        for key, code in zip(batch, codes, strict=True):
            if key not in self.shared:
                self.model.removed(key, code, certain=certain)

    async def run_tasks(self, message: CopyObjects | ReplicateObjects) -> None:
        try:
            started: TasksStarted = await self.world.ask(message, TasksStarted)
        except MooncakeError:
            return
        numbers = [task.task_id for task in started.tasks if task.task_id]

        async def ended() -> bool:
            report: TaskReport = await self.world.ask(QueryTasks(task_ids=numbers), TaskReport)
            return all(task.state in ("done", "failed", "cancelled") for task in report.tasks)

        if numbers:
            await self.world.until(ended, f"{message} did not end", 60.0)

    async def begin_only(self, key: str, size: int, whole: bool) -> None:
        value = self.model.new_value(size)
        content = memoryview(value.content())
        try:
            putting = await self.world.client.begin_put(
                [NewObject(key=key, size_bytes=size)], timeout_s=TIMEOUT_S, replicas=2
            )
        except MooncakeError:
            return
        if putting.granted:
            self.model.abandoned(key, value, time.monotonic())
            await putting.write({0: [content if whole else content[: size // 2]]})

    async def kill_node(self, node: str) -> None:
        if len(self.world.processes.alive()) > 1:
            self.world.processes.by_name[node].kill()
            self.model.node_died(node)

    async def start_all(self) -> None:
        self.world.processes.start(*NODES)

    async def renew_master(self, down_s: float) -> None:
        self.master_dies()
        await asyncio.sleep(down_s)
        self.world.processes.start(MASTER)

    def master_dies(self) -> None:
        self.world.processes.by_name[MASTER].kill()
        self.model.master_died()

    async def freeze_node(self, node: str, batch: Sequence[str], again: Sequence[str], size: int) -> None:
        """The others go on without it; then it is back, with all it had."""
        process = self.world.processes.by_name[node]
        if not process.alive or len(self.world.processes.alive()) == 1:
            return
        process.freeze()
        try:
            await self.world.until(lambda: self.world.is_gone(node), f"{node} is silent, and was not given up")
            self.model.node_died(node)
            self.certain = False
            await self.remove_all(batch, force=True)
            await self.put_all(again, size, upsert=False)
        finally:
            process.thaw()
            self.certain = True
        await self.world.until(self._is_back(node), f"{node} did not come back")

    def _is_back(self, node: str) -> Callable[[], Awaitable[bool]]:
        async def is_back() -> bool:
            return not await self.world.is_gone(node)

        return is_back

    async def all_at_once(self, storm: list[list[tuple[str, str, int]]], victim: str, after_s: float) -> None:
        users = [{key for _, key, _ in work} for work in storm]
        self.shared = {key for key in KEYS if sum(key in user for user in users) > 1}
        for key in self.shared:
            self.model.shared(key)
        self.certain = False
        try:
            await asyncio.gather(*(self.work(part) for part in storm), self.strike(victim, after_s))
        finally:
            for key in self.shared:
                self.model.shared_no_more(key, time.monotonic())
            self.shared = set()
            self.certain = True
        if not self.world.processes.by_name[MASTER].alive:
            self.world.processes.start(MASTER)

    async def work(self, part: Sequence[tuple[str, str, int]]) -> None:
        for act, key, size in part:
            if act == "get":
                await self.get_all([key])
            elif act in ("put", "upsert"):
                await self.put_all([key], size, upsert=act == "upsert")
            else:
                await self.remove_all([key], act == "force")

    async def strike(self, victim: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        if victim == MASTER:
            self.master_dies()
            await asyncio.sleep(after_s)
            self.world.processes.start(MASTER)
        elif victim and len(self.world.processes.alive()) > 1:
            await self.kill_node(victim)

    # What must hold

    async def look(self) -> None:
        """Every key is where it must be; the books are right."""
        world = self.world
        await world.settle()
        problems: list[str] = []

        async def is_right() -> bool:
            nonlocal problems
            problems = await self.problems()
            return not problems

        if world.kind == "tiered":  # a node's report of its tiers has no end that could be seen
            try:
                await world.until(is_right, "tiers did not tell", CERTAIN_S)
            except AssertionError:
                raise AssertionError(problems) from None
        else:
            assert await is_right(), problems

    async def problems(self) -> list[str]:
        described = await self.world.describe(KEYS)
        problems = (await self.world.report()).problems
        alive = set(self.world.processes.alive())
        for key, about in zip(KEYS, described, strict=True):
            if about is None:
                dram, tiers, size = set[str](), set[str](), None
            else:
                dram = {placement.node for placement in about.replicas} & alive
                tiers = set(about.tiered_on) & alive
                size = about.size_bytes
            problems += self.model.look(key, size, dram, tiers)
        return problems

    def teardown(self) -> None:
        """All comes back, everything is removed, and nothing is left."""
        if self.world.failure is None:
            self.journal.append("the end")
            self._run(self.end())

    async def end(self) -> None:
        world = self.world
        world.processes.start(MASTER, *NODES)
        await self.look()
        await self.get_all(KEYS)
        for key in KEYS if world.kind == "tiered" else ():
            await world.until(partial(self.can_be_read, key), f"{key} is there, and cannot be read", CERTAIN_S)
        await world.client.remove_all(timeout_s=TIMEOUT_S, force=True)

        async def is_empty() -> bool:
            report = await world.report()
            left = report.num_objects + report.num_writing + report.quarantined_bytes + report.used_bytes
            return not left and not report.problems

        await world.until(is_empty, "something is left after all was removed", 15.0)
        pids = {name: process.pid for name, process in world.processes.by_name.items()}
        grown = self.leaks.count({**pids, "client": os.getpid()})
        assert not grown, grown
        for name, log in world.logs().items():
            assert "Traceback" not in log, f"{name}:\n{log[log.index('Traceback') - 500 :][:3000]}"
