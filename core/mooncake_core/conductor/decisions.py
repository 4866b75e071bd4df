"""Why requests went where they went: the latest decisions, with what was known of each when it was made.

A decision keeps the columns that were computed to make it, for all instances; what people read is made of them when they ask.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

import numpy as np
from msgspec import Struct

from mooncake_core.conductor import events as e
from mooncake_core.conductor.decode_pool import DecodeChoice
from mooncake_core.conductor.prefill_pool import Ranking
from mooncake_core.kvcache.prefix_index import Match, PrefixIndex
from mooncake_core.wire.messages.inspection import CandidateScore, Decision, DecodeScore

RUNNERS_UP: Final = 8
Outcome = Literal["dispatched", "rejected", "unavailable"]
Stage = Literal["arrival", "decode"]


class Made(Struct, frozen=True, gc=False):
    """A decision."""

    at: float
    request_id: str
    tenant: str
    prompt_tokens: int
    prompt_blocks: int
    """The number of them: their keys would stay for as long as the decision, and a long prompt has thousands."""
    outcome: Outcome
    reason: str = ""
    stage: Stage = "arrival"
    ranking: Ranking | None = None
    """None: there was nobody to choose among."""
    decode: DecodeChoice | None = None


class DecisionLog:
    """Bounded; the oldest are forgotten."""

    def __init__(self, size: int, policy_name: str, index: PrefixIndex) -> None:
        self._policy_name = policy_name
        self._index = index
        self._decisions: deque[Made] = deque(maxlen=size)

    def add(
        self,
        now: float,
        arrival: e.RequestArrived,
        outcome: Outcome,
        reason: str,
        stage: Stage = "arrival",
        *,
        ranking: Ranking | None = None,
        decode: DecodeChoice | None = None,
    ) -> None:
        """Takes note of a decision."""
        self._decisions.append(
            Made(
                now,
                arrival.request_id,
                arrival.tenant,
                arrival.prompt_tokens,
                len(arrival.block_keys),
                outcome,
                reason,
                stage,
                ranking,
                decode,
            )
        )

    def latest(self, limit: int, prefix: str, now: float, *, num_candidates: int = RUNNERS_UP + 1) -> list[Decision]:
        """Newest first, of requests whose id begins so."""
        found: list[Decision] = []
        for made in reversed(self._decisions):
            if len(found) == limit:
                break
            if made.request_id.startswith(prefix):
                found.append(self._describe(made, now, num_candidates))
        return found

    def _describe(self, made: Made, now: float, num_candidates: int) -> Decision:
        ranking = made.ranking
        placed = made.outcome == "dispatched"
        best = ranking.best if ranking else None
        match = ranking.match if ranking else Match(0, [])
        return Decision(
            request_id=made.request_id,
            tenant=made.tenant,
            age_s=now - made.at,
            prompt_tokens=made.prompt_tokens,
            prompt_blocks=made.prompt_blocks,
            policy=self._policy_name,
            outcome=made.outcome,
            stage=made.stage,
            reason=made.reason,
            prefill=best.prefill if best and placed else "",
            decode=made.decode.instance.name if made.decode and placed else "",
            best_match_blocks=match.longest,
            best_match_holder=self._index.names(match.ends[-1][1])[0] if match.ends else "",
            best_match_lower_blocks=match.longest_lower,
            expected_ttft_s=best.ttft_s if best and placed else 0.0,
            expected_tbt_s=float(made.decode.tbt_s[made.decode.row]) if made.decode and placed else 0.0,
            candidates=_prefills(ranking, num_candidates) if ranking else [],
            num_candidates=len(ranking.names) if ranking else 0,
            decodes=_decodes(made.decode, num_candidates) if made.decode else [],
        )


def _prefills(ranking: Ranking, limit: int) -> list[CandidateScore]:
    return [
        CandidateScore(
            prefill=score.prefill,
            local_blocks=score.local_blocks,
            fetched_blocks=score.fetched_blocks,
            queue_s=score.queue_s,
            transfer_s=score.transfer_s,
            prefill_s=score.prefill_s,
            ttft_s=score.ttft_s,
            free_blocks=max(0, free),
            held_blocks=score.held_blocks,
            loaded_blocks=score.loaded_blocks,
            recomputed_blocks=score.recomputed_blocks,
        )
        for score, free in ranking.in_order(limit)
    ]


def _decodes(choice: DecodeChoice, limit: int) -> list[DecodeScore]:
    order = [choice.row, *(row for row in np.argsort(choice.tbt_s, kind="stable").tolist() if row != choice.row)]
    return [
        DecodeScore(
            decode=choice.table.instances[row].name,
            tbt_s=float(choice.tbt_s[row]),
            free_blocks=int(choice.free_blocks[row]),
        )
        for row in order[:limit]
        if np.isfinite(choice.tbt_s[row])
    ]
