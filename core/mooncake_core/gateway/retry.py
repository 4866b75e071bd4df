"""Whether a request that failed somewhere in the cluster is tried again, and when. Pure."""

from __future__ import annotations

from typing import Final

from mooncake_core.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    EngineError,
    KVLost,
    MooncakeError,
    PeerUnreachable,
    RequestCancelled,
    RequestRejected,
    ServiceUnavailable,
    TransferError,
)

UNREACHABLE: Final = (PeerUnreachable, AuthenticationFailed)
"""An instance that dies while one connects to it cannot be told from one that wants another key."""
MOVABLE: Final = (
    AuthenticationFailed,
    DeadlineExceeded,
    EngineError,
    KVLost,
    PeerUnreachable,
    RequestCancelled,
    ServiceUnavailable,
    TransferError,
)
"""What another instance, or the same one a little later, may do better."""
MOST_FAILURES: Final = 8
"""Of instances that took the request."""
MOST_ENGINE_FAILURES: Final = 2
"""An engine that fails twice on the same tokens will fail again."""
FIRST_DELAY_S: Final = 0.05
LONGEST_DELAY_S: Final = 1.0


class Retry:
    """One request's attempts. A request that has no token yet waits for `patience_s` at most while nobody can take it; one
    that has some, until its deadline."""

    def __init__(self, *, deadline: float, patience_s: float) -> None:
        self._deadline = deadline
        self._patience_s = patience_s
        self._placed = False
        self._advanced = False
        self._failures = 0
        self._engine_failures = 0
        self._waiting_since: float | None = None
        self._delay_s = FIRST_DELAY_S

    def placed(self) -> None:
        """Instances have taken the request: it was admitted."""
        self._placed = True

    def advanced(self) -> None:
        """An attempt has brought tokens."""
        self._advanced = True
        self._waiting_since = None
        self._delay_s = FIRST_DELAY_S

    def after_failure(self, error: MooncakeError, now: float) -> float | None:
        """An instance that had taken it failed: seconds until the next attempt, None when there is to be none."""
        if isinstance(error, UNREACHABLE):  # the master may still take a dead instance for a living one
            return self._wait(now)
        self._failures += 1
        self._engine_failures += isinstance(error, EngineError)
        hopeless = self._failures >= MOST_FAILURES or self._engine_failures >= MOST_ENGINE_FAILURES
        if hopeless or not isinstance(error, MOVABLE):
            return None
        return self._pause(now)

    def after_refusal(self, error: MooncakeError, now: float) -> float | None:
        """Nobody could take it: seconds until the next attempt, None when there is to be none."""
        waits = MOVABLE + ((RequestRejected,) if self._placed else ())
        return self._wait(now) if isinstance(error, waits) else None

    def _wait(self, now: float) -> float | None:
        if self._waiting_since is None:
            self._waiting_since = now
        if not self._advanced and now - self._waiting_since >= self._patience_s:
            return None
        return self._pause(now)

    def _pause(self, now: float) -> float | None:
        delay_s = self._delay_s
        self._delay_s = min(2 * delay_s, LONGEST_DELAY_S)
        return delay_s if now + delay_s < self._deadline else None
