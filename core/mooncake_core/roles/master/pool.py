"""Drives the Pool: clients' questions in, answers out, and what nodes have to be asked."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, get_args

from mooncake_core.errors import MooncakeError
from mooncake_core.roles.drive import Drive
from mooncake_core.roles.master.marks import Marks
from mooncake_core.roles.master.tier_calls import tier_call
from mooncake_core.roles.tasks import Tasks
from mooncake_core.store import events as p
from mooncake_core.store.pool import Pool
from mooncake_core.store.tier_events import ObjectsLoaded, TierAnswered, TierCommand
from mooncake_core.units import format_size
from mooncake_core.wire.client import Client
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.pool import (
    BlockReport,
    ClearSlots,
    Fence,
    Fenced,
    ReportBlocks,
)
from mooncake_core.wire.messages.tasks import CopyObjects, MarkDraining, Pulled, PullObjects
from mooncake_core.wire.messages.tiering import Prefetch
from mooncake_core.wire.server import Call, Handler

NODE_TIMEOUT_S: Final = 10.0
QUESTIONS: Final = get_args(p.Question)
NOBODY: Final = -1
"""Whose answer nobody waits for."""

_log = logging.getLogger(__name__)


class PoolDriver:
    """Owns the Pool object; executes its commands."""

    def __init__(
        self,
        pool: Pool,
        *,
        term: int,
        node_client: Callable[[str], Client | None],
        on_change: Callable[[p.BlocksStored | p.BlocksRemoved | ObjectsLoaded], None],
    ) -> None:
        self.pool = pool
        self._term = term
        self._node_client = node_client
        self._on_change = on_change
        self._drive: Drive[p.Event, p.Command] = Drive(pool, execute=self._execute, tick=p.Tick)
        self._tokens = itertools.count()
        self._orders = itertools.count(1)
        self._asking: int | None = None
        """Whose question is being handled."""
        self._said: Message | MooncakeError | None = None
        """The answer to that, where it comes at once."""
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._tasks = Tasks()
        self._silent: set[str] = set()
        """Nodes that did not answer the last time: that is said once, and not with every try."""
        self._marks = Marks(self._tasks)

    def handlers(self) -> dict[type, Handler]:
        """What clients may ask."""
        return dict.fromkeys(QUESTIONS, self._ask)

    def feed(self, event: p.Event) -> None:
        """Membership tells what became of a node."""
        self._drive.feed(event)

    def prefetch(self, keys: Iterable[str]) -> None:
        """Brings up those of these objects that are only in a tier: they will be read soon."""
        if self.pool.has_tiers:
            self.feed(p.Asked(NOBODY, Prefetch(keys=list(keys))))

    def copy(self, keys: Iterable[str], node: str) -> None:
        """Sees to it that a node has these objects as well, if there is room."""
        self.feed(p.Asked(NOBODY, CopyObjects(keys=list(keys), target=node)))

    def now(self) -> float:
        return self._drive.now()

    async def close(self) -> None:
        """Ends ticks and what nodes are being asked."""
        self._drive.close()
        await self._tasks.close()

    def _ask(self, message: Any, call: Call) -> Message | Coroutine[Any, Any, Message]:
        token = self._asking = next(self._tokens)
        self._marks.begin_turn(message)
        try:
            self._drive.feed(p.Asked(token, message))
        finally:
            self._asking = None
            said, self._said = self._said, None
        if isinstance(said, MooncakeError):
            raise said
        if said is not None:
            return said
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._asked[token] = answer
        answer.add_done_callback(lambda _: self._asked.pop(token))  # also when whoever asked has gone
        return _wait(answer)

    def _execute(self, command: p.Command) -> None:
        match command:
            case p.Answer(token=token, message=message):
                if self._marks.must_precede(message):
                    self._marks.after(message, lambda: self._answer(token, message), self.pool.longest_lease_s)
                else:
                    self._answer(token, message)
            case p.BlocksStored() | p.BlocksRemoved() | ObjectsLoaded():
                self._on_change(command)
            case p.FenceNode():
                self._tasks.start(self._fence(command))
            case p.AskReport():
                self._tasks.start(self._report(command))
            case p.ClearNodeSlots(name=name, incarnation=incarnation, slots=slots):
                task = self._tasks.start(self._clear(name, incarnation, slots, next(self._orders)))
                self._marks.note(task, slots)
            case p.PullToNode():
                self._tasks.start(self._pull(command, next(self._orders)))
            case p.MarkNode():
                self._tasks.start(self._mark(command))
            case p.EvictionStalled() | p.EvictionGoesOn():
                _tell(command)
            case _:
                self._tasks.start(self._ask_tier(command))

    def _answer(self, token: int, message: Message | MooncakeError) -> None:
        if token == self._asking:
            self._said = message
            return
        answer = self._asked.get(token)
        if answer is None or answer.done():
            return  # whoever asked has gone
        if isinstance(message, MooncakeError):
            answer.set_exception(message)
        else:
            answer.set_result(message)

    async def _fence(self, wanted: p.FenceNode) -> None:
        fenced = await self._call_node(wanted.name, Fence(term=self._term, round=wanted.round), Fenced)
        if fenced is not None and fenced.incarnation == wanted.incarnation:
            self.feed(p.NodeFenced(wanted.name, wanted.incarnation, wanted.round, fenced.write))

    async def _report(self, wanted: p.AskReport) -> None:
        report = await self._call_node(wanted.name, ReportBlocks(term=self._term, cursor=wanted.cursor), BlockReport)
        if report is not None and report.incarnation == wanted.incarnation:
            self.feed(p.BlocksReported(wanted, report))

    async def _clear(self, name: str, incarnation: int, slots: Sequence[Any], order: int) -> None:
        message = ClearSlots(term=self._term, incarnation=incarnation, slots=list(slots), order=order)
        if await self._call_node(name, message, Done) is not None:
            self.feed(p.SlotsCleared(name, incarnation, slots))

    async def _pull(self, wanted: p.PullToNode, order: int) -> None:
        message = PullObjects(
            term=self._term, round=wanted.round, order=order, source=wanted.source, pulls=list(wanted.pulls)
        )
        pulled = await self._call_node(wanted.name, message, Pulled)
        if pulled is not None:
            numbers = (pull.pull_id for pull in wanted.pulls)
            refusals = dict(zip(numbers, pulled.refusals, strict=True))
            self.feed(p.ObjectsPulled(wanted.name, pulled.incarnation, refusals))

    async def _mark(self, wanted: p.MarkNode) -> None:
        message = MarkDraining(term=self._term, draining=wanted.draining)
        if await self._call_node(wanted.name, message, Done) is not None:
            self.feed(p.NodeMarked(wanted.name, wanted.incarnation, wanted.draining))

    async def _ask_tier(self, wanted: TierCommand) -> None:
        message, reply_type = tier_call(wanted, self._term)
        self.feed(TierAnswered(wanted, await self._call_node(wanted.name, message, reply_type)))

    async def _call_node(self, name: str, message: Message, reply_type: type[Any]) -> Any:
        """The node's answer, or None: the Pool asks again on a tick, and membership decides when a node is dead."""
        client = self._node_client(name)
        if client is None:
            return None
        try:
            answer = await client.call(message, reply_type, timeout_s=NODE_TIMEOUT_S)
        except MooncakeError as error:
            level = logging.DEBUG if name in self._silent else logging.WARNING
            _log.log(level, "node %s did not answer %s: %s", name, type(message).__name__, error)
            self._silent.add(name)
            return None
        self._silent.discard(name)
        return answer


def _tell(news: p.EvictionStalled | p.EvictionGoesOn) -> None:
    match news:
        case p.EvictionStalled(node, live_bytes, capacity_bytes):
            _log.warning(
                "node %s is full (%s of %s) and nothing there may be evicted: all is pinned, under lease, being written, or "
                "has a chain go on from it; puts are refused until that changes (`mooncake inspect cache`)",
                node,
                format_size(live_bytes),
                format_size(capacity_bytes),
            )
        case p.EvictionGoesOn(node):
            _log.info("node %s can make room again", node)


async def _wait(answer: asyncio.Future[Message]) -> Message:
    return await answer
