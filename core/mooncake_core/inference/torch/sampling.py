"""Chooses tokens from logits: greedy, or by temperature, top-k and top-p with the counter-based generator.

Rows are computed together, each by itself: a row's token depends on its logits, its sampling and its position, never on
the rows beside it. The distribution is exactly the one asked for; which token a seed draws from it is a matter of the order
in which tokens are lined up, here that of the vocabulary where nothing is cut off, else that of probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from mooncake_core.inference.counter import uniform
from mooncake_core.wire.messages.serving import Logprobs, Sampling

CANDIDATES: Final = 256
"""Most probable tokens that are looked at first: hardly ever does a text's next token need more of them."""
MORE_CANDIDATES: Final = 16
"""So many times more are looked at where they were too few."""


@dataclass(frozen=True, slots=True)
class _Cuts:
    """What each row leaves out, [rows, 1] each."""

    top_k: torch.Tensor
    """The whole vocabulary where it is off."""
    has_top_k: torch.Tensor
    top_p: torch.Tensor

    @classmethod
    def of(cls, samplings: Sequence[Sampling], vocabulary: int, device: torch.device) -> _Cuts:
        limits = [sampling.top_k if 0 < sampling.top_k < vocabulary else vocabulary for sampling in samplings]
        top_k = torch.tensor(limits, device=device).unsqueeze(1)
        top_p = torch.tensor([[sampling.top_p] for sampling in samplings], dtype=torch.float64, device=device)
        return cls(top_k, top_k < vocabulary, top_p)

    def rows(self, index: torch.Tensor) -> _Cuts:
        """Those of some rows."""
        return _Cuts(self.top_k[index], self.has_top_k[index], self.top_p[index])


def choose(
    logits: torch.Tensor, samplings: Sequence[Sampling], positions: Sequence[int], best: torch.Tensor | None = None
) -> list[int]:
    """One token per row of logits [rows, vocabulary]; position is where the new token will stand. `best` may be known: the
    most probable token of each row."""
    tokens = logits.argmax(-1) if best is None else best.clone()
    for cut in (False, True):
        rows = [row for row, asked in enumerate(samplings) if asked.temperature != 0 and _is_cut(asked) == cut]
        if rows:
            tokens[rows] = _draw(logits[rows], [samplings[row] for row in rows], [positions[row] for row in rows])
    found: list[int] = tokens.tolist()
    return found


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


def _draw(logits: torch.Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> torch.Tensor:
    """One token per row: the inverse of the cumulative distribution, at the row's number of the generator."""
    device = logits.device
    numbers = [[uniform(sampling.seed, at)] for sampling, at in zip(samplings, positions, strict=True)]
    temperatures = torch.tensor([[sampling.temperature] for sampling in samplings], device=device)
    # Shifted first: however small the temperature, the most probable token stays at 0.
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperatures.clamp(min=torch.finfo(torch.float32).tiny)
    drawn = torch.tensor(numbers, dtype=torch.float64, device=device)
    if not _is_cut(samplings[0]):
        return _draw_from_all(scaled.softmax(-1), drawn)
    cuts = _Cuts.of(samplings, logits.shape[-1], device)
    tokens = torch.zeros(len(samplings), dtype=torch.int64, device=device)
    rest = torch.arange(len(samplings), device=device)
    num_candidates = max(CANDIDATES, 2 * max(sampling.top_k for sampling in samplings))
    while len(rest):
        tokens[rest], certain = _draw_from_likeliest(scaled[rest], cuts.rows(rest), drawn[rest], num_candidates)
        rest = rest[~certain]
        num_candidates *= MORE_CANDIDATES
    return tokens


def _draw_from_all(probabilities: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """In the vocabulary's order: nothing is sorted where nothing is cut off."""
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    index = torch.searchsorted(cumulative, drawn * cumulative[:, -1:], right=True)
    return index.clamp(max=probabilities.shape[-1] - 1).squeeze(1)


def _draw_from_likeliest(
    scaled: torch.Tensor, cuts: _Cuts, drawn: torch.Tensor, num_candidates: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """In the order of probability, of equal tokens the lower id first. Returns the tokens, and for which rows they are
    certain: what is kept lies among the candidates, whatever came just after them. So their number does not matter."""
    vocabulary = scaled.shape[-1]
    values, token_ids = _likeliest(scaled, min(num_candidates, vocabulary))
    found = values.shape[-1]
    complete = (
        (values > values[:, -1:]).sum(-1, keepdim=True) if found < vocabulary else torch.full_like(cuts.top_k, found)
    )
    cumulative = scaled.softmax(-1).gather(1, token_ids).cumsum(-1, dtype=torch.float64)
    total = cumulative.gather(1, cuts.top_k.clamp(max=found) - 1)  # top_p is a share of what top_k leaves
    needed = torch.where(cuts.top_p < 1, cuts.top_p * torch.where(cuts.has_top_k, total, 1.0), torch.inf)
    reaching = (cumulative < needed).sum(-1, keepdim=True) + 1  # the token that reaches top_p belongs to it
    kept = torch.minimum(reaching, cuts.top_k).clamp(max=found)
    certain = torch.where(cuts.has_top_k, cuts.top_k, reaching).clamp(max=vocabulary) <= complete
    index = torch.searchsorted(cumulative, drawn * cumulative.gather(1, kept - 1), right=True)
    return token_ids.gather(1, torch.minimum(index, kept - 1)).squeeze(1), certain.squeeze(1)


def _likeliest(scaled: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest values of each row and whose they are, of equal ones the lower id first."""
    if count == scaled.shape[-1]:
        values, token_ids = torch.sort(scaled, descending=True, stable=True)
        return values, token_ids
    token_ids = scaled.topk(count, sorted=False).indices.sort(-1).values  # topk leaves the order of equal ones open
    values, order = torch.sort(scaled.gather(1, token_ids), descending=True, stable=True)
    return values, token_ids.gather(1, order)


def _is_cut(sampling: Sampling) -> bool:
    """Whether some tokens are left out."""
    return sampling.top_k > 0 or sampling.top_p < 1
