"""The requests that the Conductor has placed, or is placing, each from its arrival to its end."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from msgspec import Struct

from mooncake_core.conductor import events as e
from mooncake_core.conductor.admission.contract import Asking
from mooncake_core.conductor.policies.contract import Score
from mooncake_core.wire.messages.membership import ModelOffer


class Request(Struct, gc=False):
    """Where a request is to run, and how far it is."""

    arrival: e.RequestArrived
    score: Score
    asking: Asking
    """As admission sees it."""
    reach: int = 0
    """Leading blocks that the pool had when it came."""
    decode: str = ""
    tbt_s: float = 0.0
    """Predicted for it there."""
    refused_by: frozenset[str] = frozenset()
    unanswered: bool = False
    """A decode instance that was asked for memory could not be reached."""
    dispatched: bool = False
    prefilled: bool = False


class Requests:
    """By id, with their deadlines."""

    def __init__(self) -> None:
        self._requests: dict[str, Request] = {}
        self._deadlines: list[tuple[float, str]] = []
        """Of requests, some of which may have ended; the earliest first."""

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def get(self, request_id: str) -> Request | None:
        return self._requests.get(request_id)

    def add(self, request: Request) -> None:
        """A request was placed."""
        arrival = request.arrival
        self._requests[arrival.request_id] = request
        heapq.heappush(self._deadlines, (arrival.deadline, arrival.request_id))
        if len(self._deadlines) > 2 * len(self._requests) + 64:  # most have ended, behind one that goes on
            self._deadlines = [(other.arrival.deadline, name) for name, other in self._requests.items()]
            heapq.heapify(self._deadlines)

    def pop(self, request_id: str) -> Request | None:
        """It has ended."""
        return self._requests.pop(request_id, None)

    def late(self, now: float) -> list[Request]:
        """Those whose deadline has passed."""
        return [request for request in self._requests.values() if request.arrival.deadline <= now]

    def waiting_for(self, instance: str) -> list[Request]:
        """Those that are to run there, and were not dispatched yet."""
        return [
            request
            for request in self._requests.values()
            if instance in (request.score.prefill, request.decode) and not request.dispatched
        ]

    def next_deadline(self) -> float | None:
        """When the first request's time is over."""
        while self._deadlines:
            deadline, request_id = self._deadlines[0]
            request = self._requests.get(request_id)
            if request is not None and request.arrival.deadline == deadline:
                return deadline
            heapq.heappop(self._deadlines)  # of a request that has ended
        return None


def prompt_blocks(arrival: e.RequestArrived, model: ModelOffer) -> int:
    """Blocks that a prefill instance needs for the prompt."""
    return -(-arrival.prompt_tokens // model.block_tokens)


def unended(owners: Iterable[tuple[str, str]], requests: Requests) -> list[str]:
    """Instances that work for requests which have ended; for tests."""
    return [f"{name} works for {owner}" for name, owner in owners if owner not in requests]
