"""Chunked pipeline parallelism (FAST'25, section 3.3): a prefill group's members each compute a range of layers, and chunks
of one prompt are in several of them at once. A group of one is a plain instance that computes in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator

from mooncake_core.sim.shapes import Costs


class Pipeline:
    """The stages of a prefill group, and until when each is busy."""

    def __init__(self, costs: Costs, *, stages: int, chunk_tokens: int, hop_s: float = 0.0) -> None:
        """`hop_s`: what a chunk takes from one member to the next."""
        self._costs = costs
        self._chunk_tokens = chunk_tokens
        self._hop_s = hop_s
        self._free_at = [0.0] * stages

    @property
    def stages(self) -> int:
        """Members of the group."""
        return len(self._free_at)

    @property
    def free_at(self) -> float:
        """When the first stage can take another prompt."""
        return self._free_at[0]

    def duration_s(self, prompt_tokens: int, matched_tokens: int) -> float:
        """Computation of a prompt, all stages and chunks together."""
        return sum(self._chunk_times(prompt_tokens, matched_tokens))

    def run(self, prompt_tokens: int, matched_tokens: int, begin: float) -> float:
        """Takes a prompt, not before `begin`; when the last stage has computed its last chunk."""
        free_at = self._free_at
        share = 1 / len(free_at)
        for chunk_s in self._chunk_times(prompt_tokens, matched_tokens):
            ready = begin
            for stage, free in enumerate(free_at):
                if stage:
                    ready += self._hop_s
                ready = free_at[stage] = max(ready, free) + chunk_s * share
        return free_at[-1]

    def clear(self) -> None:
        """What was computed is given up."""
        self._free_at = [0.0] * len(self._free_at)

    def _chunk_times(self, prompt_tokens: int, matched_tokens: int) -> Iterator[float]:
        for start in range(matched_tokens, prompt_tokens, self._chunk_tokens):
            yield self._costs.prefill_s(min(start + self._chunk_tokens, prompt_tokens), start)
