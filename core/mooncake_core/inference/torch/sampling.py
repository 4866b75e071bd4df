"""Chooses tokens from logits: greedy, or by temperature, top-k and top-p with the counter-based generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mooncake_core.inference.counter import uniform
from mooncake_core.wire.messages.serving import Logprobs, Sampling


def choose(
    logits: torch.Tensor, samplings: Sequence[Sampling], positions: Sequence[int], best: torch.Tensor | None = None
) -> list[int]:
    """One token per row of logits [rows, vocabulary]; position is where the new token will stand. `best` may be known: the
    most probable token of each row."""
    greedy = (logits.argmax(-1) if best is None else best).tolist()
    return [
        greedy[row] if sampling.temperature == 0 else _sample(logits[row], sampling, position)
        for row, (sampling, position) in enumerate(zip(samplings, positions, strict=True))
    ]


def logprobs(logits: torch.Tensor, samplings: Sequence[Sampling], token_ids: Sequence[int]) -> dict[int, Logprobs]:
    """Row to log probabilities, of the rows that ask for them."""
    rows = [row for row, sampling in enumerate(samplings) if sampling.logprobs >= 0]
    if not rows:
        return {}
    normalized = logits[rows].log_softmax(-1)
    most = min(max(samplings[row].logprobs for row in rows), logits.shape[-1])
    values, indices = normalized.topk(most)
    chosen = normalized.gather(1, torch.tensor([[token_ids[row]] for row in rows], device=logits.device)).squeeze(1)
    found = zip(rows, chosen.tolist(), values.tolist(), indices.tolist(), strict=True)
    return {
        row: Logprobs(
            chosen=of_chosen, top_token_ids=ids[: samplings[row].logprobs], top=top[: samplings[row].logprobs]
        )
        for row, of_chosen, top, ids in found
    }


def _sample(logits: torch.Tensor, sampling: Sampling, position: int) -> int:
    """Inverse of the cumulative distribution over the most probable tokens, in order of probability."""
    ordered, token_ids = torch.sort(logits.double() / sampling.temperature, descending=True, stable=True)
    if sampling.top_k > 0:
        ordered = ordered[: sampling.top_k]
    cumulative = ordered.softmax(-1).cumsum(-1)
    if sampling.top_p < 1:
        kept = int((cumulative < sampling.top_p).sum().item()) + 1  # the token that reaches top_p belongs to it
        cumulative = cumulative[:kept]
    drawn = uniform(sampling.seed, position) * cumulative[-1].item()
    index = int((cumulative <= drawn).sum().item())
    return int(token_ids[min(index, len(cumulative) - 1)].item())
