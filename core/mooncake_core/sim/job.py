"""A request on its way through the simulated cluster, with what is measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mooncake_core.sim.gaps import Run

Outcome = Literal["", "completed", "rejected", "unavailable"]


@dataclass(slots=True, eq=False)
class Job:
    """One request; all times are seconds of the simulation."""

    number: int
    arrived_at: float
    prompt_tokens: int
    output_tokens: int
    keys: Sequence[bytes]
    """Of its blocks that may be reused."""
    priority: int = 0
    tenant: str = ""
    attempt: int = 0
    """How often it was begun anew, because an instance was lost."""
    lost_at: list[str] = field(default_factory=list)
    """Instances that failed it."""
    dispatched: bool = False
    prefilled: bool = False
    joined: bool = False
    """All its KV is with its decode instance."""
    waiting_since: float = -1.0
    """For an instance that can serve it; negative when it does not."""
    prefill: str = ""
    decode: str = ""
    matched_tokens: int = 0
    """That the Conductor counts on."""
    cached_tokens: int = 0
    """Of the prompt, at the first prefill: not computed."""
    loaded_tokens: int = 0
    """Of these: that lay below DRAM, and nobody had in DRAM."""
    generated: int = 0
    """Tokens that the client has."""
    first_token_at: float = -1.0
    last_token_at: float = -1.0
    ended_at: float = -1.0
    prefill_s: float = 0.0
    """Time that instances computed its prompt, all attempts together."""
    expected_ttft_s: float = 0.0
    expected_tbt_s: float = 0.0
    runs: list[Run] = field(default_factory=list)
    """Gaps between its tokens."""
    outcome: Outcome = ""
    stage: str = ""
    """Where it was rejected: at its arrival, or at decode when its prefill had ended."""
    reason: str = ""
    cause: str = ""
    """Of a rejection: ttft, tbt, memory or share."""

    @property
    def request_id(self) -> str:
        """As the Conductor knows this attempt."""
        return f"{self.number}.{self.attempt}"

    @property
    def context_tokens(self) -> int:
        """What a prefill has to compute or load: the prompt, and what was generated before an instance was lost."""
        return self.prompt_tokens + self.generated

    @property
    def missing_tokens(self) -> int:
        """Tokens that the client has not got yet."""
        return self.output_tokens - self.generated

    def give_token(self, now: float) -> None:
        """The prefill's token reaches the client."""
        if self.generated:
            self.runs.append(Run(1, now - self.last_token_at, 0.0))
        else:
            self.first_token_at = now
        self.generated += 1
        self.last_token_at = now

    def take(self, runs: Sequence[Run], now: float) -> None:
        """Tokens that it got in a batch, the last of them now."""
        if not runs:
            return
        self.runs.extend(runs)
        self.generated += sum(run.length for run in runs)
        self.last_token_at = now
