"""Why requests went where they went: the latest decisions, with what was known of each when it was made."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from mooncake_core.conductor import events as e
from mooncake_core.conductor.instances import PrefillInstance
from mooncake_core.conductor.policies.contract import Score
from mooncake_core.conductor.requests import Request
from mooncake_core.wire.messages.inspection import CandidateScore, Decision

RUNNERS_UP: Final = 8


class DecisionLog:
    """Bounded; the oldest are forgotten."""

    def __init__(self, size: int, policy_name: str) -> None:
        self._policy_name = policy_name
        self._decisions: deque[tuple[float, Decision]] = deque(maxlen=size)

    def latest(self, limit: int, prefix: str, now: float) -> list[Decision]:
        """Newest first, of requests whose id begins so."""
        found = [
            msgspec.structs.replace(decision, age_s=now - at)
            for at, decision in reversed(self._decisions)
            if decision.request_id.startswith(prefix)
        ]
        return found[:limit]

    def record(
        self,
        arrival: e.RequestArrived,
        candidates: Sequence[tuple[Score, PrefillInstance | None]],
        matches: Mapping[str, int],
        *,
        outcome: str,
        reason: str,
        now: float,
        request: Request | None = None,
        stage: str = "arrival",
    ) -> None:
        """`candidates` are the best ones, the first one first; `matches` say how much of the prompt nodes have."""
        holder = max(matches, key=lambda name: matches[name], default="")
        decision = Decision(
            request_id=arrival.request_id,
            age_s=0.0,
            prompt_tokens=arrival.prompt_tokens,
            prompt_blocks=len(arrival.block_keys),
            policy=self._policy_name,
            outcome=outcome,
            stage=stage,
            reason=reason,
            prefill=request.score.prefill if request else "",
            decode=request.decode if request else "",
            best_match_blocks=matches.get(holder, 0),
            best_match_holder=holder,
            expected_ttft_s=request.score.ttft_s if request else 0.0,
            expected_tbt_s=request.tbt_s if request else 0.0,
            candidates=[_candidate(score, instance) for score, instance in candidates],
        )
        self._decisions.append((now, decision))


def _candidate(score: Score, instance: PrefillInstance | None) -> CandidateScore:
    return CandidateScore(
        prefill=score.prefill,
        local_blocks=score.local_blocks,
        fetched_blocks=score.fetched_blocks,
        queue_s=score.queue_s,
        transfer_s=score.transfer_s,
        prefill_s=score.prefill_s,
        ttft_s=score.ttft_s,
        free_blocks=max(0, instance.free_blocks()) if instance else 0,
    )
