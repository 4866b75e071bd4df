"""Gathers what all processes know of requests."""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

from mooncake_core.errors import MooncakeError
from mooncake_core.roles.master.members import Members
from mooncake_core.telemetry.spans import Spans
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.timeline import GetSpans, ListRequests, Requests, SpansOf
from mooncake_core.wire.server import Call, Handler

ANSWER_S: Final = 2.0

M = TypeVar("M")


class Timelines:
    """Asks gateways and instances, and adds the master's own part."""

    def __init__(self, members: Members, spans: Spans) -> None:
        self._members = members
        self._spans = spans

    def handlers(self) -> dict[type, Handler]:
        return {GetSpans: self._get_spans, ListRequests: self._list_requests}

    async def _get_spans(self, message: GetSpans, call: Call) -> SpansOf:
        answers = await self._ask(("gateway", "prefill", "decode"), message, SpansOf)
        found = [span for answer in answers.values() if answer for span in answer.spans]
        found += self._spans.of(message.request_id)
        return SpansOf(
            spans=sorted(found, key=lambda span: span.start_s),
            silent=[name for name, answer in answers.items() if answer is None],
            dropped=self._spans.num_dropped(message.request_id)
            + sum(answer.dropped for answer in answers.values() if answer),
        )

    async def _list_requests(self, message: ListRequests, call: Call) -> Requests:
        answers = await self._ask(("gateway",), message, Requests)
        found = [request for answer in answers.values() if answer for request in answer.requests]
        return Requests(requests=sorted(found, key=lambda request: request.age_s)[: message.limit])

    async def _ask(self, roles: tuple[str, ...], message: Message, reply_type: type[M]) -> dict[str, M | None]:
        """Each member's answer; None from those that did not give one."""
        names = [record.join.name for record in self._members.records() if record.join.role in roles]
        answers = await asyncio.gather(*(self._ask_one(name, message, reply_type) for name in names))
        return dict(zip(names, answers, strict=True))

    async def _ask_one(self, name: str, message: Message, reply_type: type[M]) -> M | None:
        client = self._members.client_of(name)
        try:
            return await client.call(message, reply_type, timeout_s=ANSWER_S) if client else None
        except MooncakeError:
            return None
