"""What is kept of each request that ended: columns of numbers, so that a million take little memory."""

from __future__ import annotations

from array import array
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mooncake_core.sim.gaps import summarise
from mooncake_core.sim.job import Job

MISSING: Final = -1.0
"""Of what a request did not come to: a time to first token, a gap."""
_COLUMNS: Final = (
    "arrived_at", "ttft_s", "tbt_mean_s", "tbt_p90_s", "tbt_max_s", "tbt_s", "latency_s", "prefill_s",
    "expected_ttft_s", "expected_tbt_s", "prompt_tokens", "output_tokens", "cached_tokens", "loaded_tokens",
)  # fmt: skip


class Records:
    """One row per request, in the order in which they ended."""

    def __init__(self) -> None:
        self._columns = {name: array("d") for name in _COLUMNS}
        self.numbers = array("q")
        self.texts: dict[str, list[str]] = {
            name: [] for name in ("outcome", "stage", "cause", "reason", "prefill", "decode", "tenant")
        }

    def __len__(self) -> int:
        return len(self.numbers)

    def add(self, job: Job) -> None:
        """A request has ended."""
        completed = job.outcome == "completed"
        gaps = summarise(job.runs) if completed else None
        self.numbers.append(job.number)
        values = (
            job.arrived_at,
            job.first_token_at - job.arrived_at if job.first_token_at >= 0 else MISSING,
            gaps.mean_s if gaps else MISSING,
            gaps.p90_s if gaps else MISSING,
            gaps.max_s if gaps else MISSING,
            gaps.slowest_s if gaps else MISSING,
            job.ended_at - job.arrived_at,
            job.prefill_s,
            job.expected_ttft_s,
            job.expected_tbt_s,
            job.prompt_tokens,
            job.output_tokens,
            job.cached_tokens,
            job.loaded_tokens,
        )
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)
        for name, texts in self.texts.items():
            texts.append(getattr(job, name))

    def latest(self, name: str) -> float:
        """A number of the request that ended last."""
        return self._columns[name][-1]

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """A column of numbers."""
        return np.array(self._columns[name])

    def where(self, name: str, text: str) -> npt.NDArray[np.bool_]:
        """Rows whose text is this one."""
        return np.array([found == text for found in self.texts[name]], dtype=bool)

    def rows(self) -> list[dict[str, Any]]:
        """As readers want them, by request number."""
        found = []
        for row in sorted(range(len(self)), key=self.numbers.__getitem__):
            values = {name: column[row] for name, column in self._columns.items()}
            texts = {name: column[row] for name, column in self.texts.items()}
            found.append({"request": self.numbers[row], **texts, **values})
        return found
