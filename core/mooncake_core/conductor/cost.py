"""How long things take: first from an instance's own hint, then corrected by what is observed.

A correction is one factor per instance and kind, an exponentially weighted mean of observed / predicted, bounded so that
one odd observation cannot derail the scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from mooncake_core.config.schema import CostConfig
from mooncake_core.wire.messages.membership import CostHint

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

WEIGHT: Final = 0.2
SMALLEST_FACTOR: Final = 0.05
LARGEST_FACTOR: Final = 20.0
LEAST_LOADED_BYTES: Final = 1 << 20
HALF_LIFE_S: Final = 20.0
"""Of a correction while an instance has nothing to do: one that was slow once is tried again."""


class Correction:
    """The factor between prediction and reality."""

    def __init__(self) -> None:
        self.factor = 1.0

    def observe(self, predicted_s: float, observed_s: float) -> None:
        """Takes one observation into account."""
        if predicted_s <= 0 or observed_s <= 0:
            return
        ratio = min(max(observed_s / predicted_s, SMALLEST_FACTOR), LARGEST_FACTOR)
        self.factor += WEIGHT * (ratio - self.factor)

    def fade(self, seconds: float) -> None:
        """Nothing was observed for so long."""
        self.factor = 1.0 + (self.factor - 1.0) * 0.5 ** (seconds / HALF_LIFE_S)


@dataclass(frozen=True, slots=True)
class HintCosts:
    """Exactly what a hint says, in seconds."""

    hint: CostHint

    def prefill_s(self, prompt_tokens: int, matched_tokens: int) -> float:
        """A prompt of which a prefix is in place."""
        hint = self.hint
        return (
            hint.prefill_base_s
            + hint.prefill_per_token_s * (prompt_tokens - matched_tokens)
            + hint.prefill_per_token2_s * (prompt_tokens**2 - matched_tokens**2)
        )

    def step_s(self, batch: float, context_tokens: float) -> float:
        """A decode step of `batch` sequences with so many tokens of context together."""
        hint = self.hint
        return hint.step_base_s + hint.step_per_sequence_s * batch + hint.step_per_context_token_s * context_tokens


def hint_of(cost: CostConfig) -> CostHint:
    """What the configuration says of an engine, as an instance offers it."""
    return CostHint(
        prefill_base_s=cost.prefill_base,
        prefill_per_token_s=cost.prefill_per_token,
        prefill_per_token2_s=cost.prefill_per_token2,
        step_base_s=cost.step_base,
        step_per_sequence_s=cost.step_per_sequence,
        step_per_context_token_s=cost.step_per_context_token,
        fetch_bytes_per_s=cost.fetch_bytes_per_s,
        load_bytes_per_s=cost.load_bytes_per_s,
    )


class CostModel:
    """Predictions for one instance, in seconds."""

    def __init__(self, hint: CostHint) -> None:
        self.hint = hint
        self._exact = HintCosts(hint)
        self._prefill = Correction()
        self._step = Correction()
        self._load = Correction()
        self._has_loaded = False
        """Since its correction was last to fade."""

    @property
    def prefill_factor(self) -> float:
        """By which prefills take longer than the hint says."""
        return self._prefill.factor

    @property
    def load_bytes_per_s(self) -> float:
        """At which what lies below DRAM comes up."""
        return self.hint.load_bytes_per_s / self._load.factor

    @property
    def step_factor(self) -> float:
        """By which decode steps take longer than the hint says."""
        return self._step.factor

    def prefill_s(self, prompt_tokens: int, matched_tokens: int) -> float:
        """Time to compute a prompt of which a prefix is in place: linear in new tokens, attention quadratic."""
        return self._prefill.factor * self._exact.prefill_s(prompt_tokens, matched_tokens)

    def fetch_s(self, num_bytes: int) -> float:
        """Time to fetch so many bytes from other nodes."""
        return num_bytes / self.hint.fetch_bytes_per_s

    def step_s(self, batch: float, context_tokens: float) -> float:
        """Time of one decode step of `batch` sequences with so many tokens of context together: their TBT."""
        return self._step.factor * self._exact.step_s(batch, context_tokens)

    def observe_prefill(self, prompt_tokens: int, matched_tokens: int, observed_s: float) -> None:
        """A prefill took so long."""
        self._prefill.observe(self._exact.prefill_s(prompt_tokens, matched_tokens), observed_s)

    def fade_prefill(self, seconds: float) -> None:
        """It has computed no prefill for so long."""
        self._prefill.fade(seconds)

    def observe_load(self, num_bytes: int, observed_s: float) -> None:
        """So many bytes came up from below DRAM; few say nothing of the rate."""
        if num_bytes >= LEAST_LOADED_BYTES:
            self._load.observe(num_bytes / self.hint.load_bytes_per_s, observed_s)
            self._has_loaded = True

    def fade_load(self, seconds: float) -> None:
        """So long has passed: a tier that was slow once, from which nothing is loaded any more, is tried again."""
        if not self._has_loaded:
            self._load.fade(seconds)
        self._has_loaded = False

    def observe_step(self, batch: int, context_tokens: int, observed_s: float) -> None:
        """Decode steps take so long now."""
        self._step.observe(self._exact.step_s(batch, context_tokens), observed_s)


class PrefillCosts:
    """The same predictions for many instances at once: columns, one entry for each, in seconds."""

    def __init__(self, models: Sequence[CostModel]) -> None:
        hints = [model.hint for model in models]
        self._base = _column([hint.prefill_base_s for hint in hints])
        self._per_token = _column([hint.prefill_per_token_s for hint in hints])
        self._per_token2 = _column([hint.prefill_per_token2_s for hint in hints])
        self._rates = _column([hint.fetch_bytes_per_s for hint in hints])
        self._load_rates = np.array([model.load_bytes_per_s for model in models], np.float64)
        self.alike = len(set(hints)) == 1
        """They differ in their corrections only."""
        self._hint = hints[0]
        self._factors = np.array([model.prefill_factor for model in models], np.float64)
        self._slowest_rate = min(hint.fetch_bytes_per_s for hint in hints)
        self._slowest_load_rate = float(self._load_rates.min())
        """That any has ever had."""
        self._cheapest_token_s = min(hint.prefill_per_token_s for hint in hints)
        self._smallest_factor = float(self._factors.min())
        """That any has ever had."""

    def refresh(self, row: int, model: CostModel) -> None:
        """A model has observed something."""
        self._factors[row] = model.prefill_factor
        self._smallest_factor = min(self._smallest_factor, model.prefill_factor)
        self._load_rates[row] = model.load_bytes_per_s
        self._slowest_load_rate = min(self._slowest_load_rate, model.load_bytes_per_s)

    def may_be_dearer(self, token_bytes: float) -> bool:
        """Whether there may be an instance to which a token takes longer to fetch than to compute. False is certain, and
        spares looking at each."""
        return token_bytes / self._slowest_rate > self._smallest_factor * self._cheapest_token_s

    def loading_may_be_dearer(self, token_bytes: float) -> bool:
        """The same, for a token that is loaded from below DRAM at one node and fetched by another."""
        transfer_s = token_bytes / self._slowest_rate + token_bytes / self._slowest_load_rate
        return transfer_s > self._smallest_factor * self._cheapest_token_s

    def prefill_s(self, prompt_tokens: int, matched_tokens: Ints) -> Floats:
        """Time to compute a prompt of which each has another prefix in place."""
        matched = matched_tokens.astype(np.float64)  # once: mixed arithmetic converts at each step
        whole_s = self._base + (self._per_token + self._per_token2 * prompt_tokens) * prompt_tokens
        found: Floats = self._factors * (whole_s - (self._per_token + self._per_token2 * matched) * matched)
        return found

    def exact_prefill_s(self, prompt_tokens: int, matched_tokens: int) -> float:
        """The same without corrections, where all are alike: to the last bit."""
        hint, matched = self._hint, float(matched_tokens)
        base_s, per_token_s, per_token2_s = hint.prefill_base_s, hint.prefill_per_token_s, hint.prefill_per_token2_s
        whole_s = base_s + (per_token_s + per_token2_s * prompt_tokens) * prompt_tokens
        return whole_s - (per_token_s + per_token2_s * matched) * matched

    def exact_fetch_s(self, num_bytes: int) -> float:
        """Time to fetch so many bytes, where all are alike."""
        return num_bytes / self._hint.fetch_bytes_per_s

    def corrected(self, exact_s: Floats) -> Floats:
        """As each one's prefills were observed to take."""
        found: Floats = self._factors * exact_s
        return found

    def fetch_s(self, num_bytes: Ints) -> Floats:
        """Time to fetch so many bytes from other nodes."""
        found: Floats = num_bytes / self._rates
        return found

    def load_s(self, num_bytes: Ints) -> Floats:
        """Time to load so many bytes from below DRAM."""
        found: Floats = num_bytes / self._load_rates
        return found


class StepCosts:
    """Decode steps of many instances at once: columns, one entry for each, in seconds."""

    def __init__(self, models: Sequence[CostModel]) -> None:
        hints = [model.hint for model in models]
        self._base = _column([hint.step_base_s for hint in hints])
        self._per_sequence = _column([hint.step_per_sequence_s for hint in hints])
        self._per_token = _column([hint.step_per_context_token_s for hint in hints])
        self._factors = np.array([model.step_factor for model in models], np.float64)
        self._growing_s: Floats = np.zeros(len(models))
        """What its sequences and their context add to an empty step."""

    def refresh(self, row: int, model: CostModel, batch: int, context_tokens: int) -> None:
        """A model has observed something, or its instance has another batch, with so many tokens of context together."""
        hint = model.hint
        self._factors[row] = model.step_factor
        self._growing_s[row] = hint.step_per_sequence_s * batch + hint.step_per_context_token_s * context_tokens

    def step_with_s(self, context_tokens: int) -> Floats:
        """A decode step of each with one more sequence, which has so many tokens of context."""
        found: Floats = self._factors * (
            self._growing_s + (self._base + self._per_sequence + self._per_token * context_tokens)
        )
        return found


def _column(values: Sequence[float]) -> Floats | float:
    """Equal values as one number: arithmetic with it takes fewer steps over columns."""
    return values[0] if len(set(values)) == 1 else np.array(values, np.float64)
