"""Answers that wait until nodes have marked what was removed: whoever reads under an older lease sees it then.

See docs/decisions/0029-leases-are-remembered.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Set

from mooncake_core.errors import MooncakeError
from mooncake_core.roles.tasks import Tasks
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.pool import PutEnd, PutEnded, Removed, RemovedAll, SlotClearing


class Marks:
    """Orders to mark slots that are under way. Used on one event loop."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._own: set[int] = set()
        self._of_this_turn: set[asyncio.Task[None]] = set()
        self._under_way: set[asyncio.Task[None]] = set()

    def begin_turn(self, message: object) -> None:
        """A question is being handled: what is marked from now on is marked because of it. What its asker has only written,
        and gives up, nobody has read."""
        self._of_this_turn.clear()
        self._own.clear()
        if isinstance(message, PutEnd):
            self._own = {*message.revoked, *(commit.allocation_id for commit in message.commits)}

    def note(self, order: asyncio.Task[None], slots: Sequence[SlotClearing]) -> None:
        """A node is asked to mark or clear slots. What is only cleared is under nobody's lease."""
        if any(slot.only_mark and slot.allocation_id not in self._own for slot in slots):
            self._of_this_turn.add(order)
            self._under_way.add(order)
            order.add_done_callback(self._under_way.discard)

    def must_precede(self, message: Message | MooncakeError) -> bool:
        """Whether something was removed that has to be marked before this answer."""
        return bool(self._under_way) and bool(self._waited_for(message))

    def after(self, message: Message | MooncakeError, answer: Callable[[], None], longest_s: float) -> None:
        """Answers when that is marked; no later than leases on it end."""
        self._tasks.start(_answer_after(set(self._waited_for(message)), answer, longest_s))

    def _waited_for(self, message: Message | MooncakeError) -> Set[asyncio.Task[None]]:
        if isinstance(message, PutEnded | Removed):
            return self._of_this_turn
        return self._under_way if isinstance(message, RemovedAll) else frozenset()  # the last of several turns


async def _answer_after(orders: set[asyncio.Task[None]], answer: Callable[[], None], longest_s: float) -> None:
    await asyncio.wait(orders, timeout=longest_s)
    answer()
