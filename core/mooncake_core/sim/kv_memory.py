"""The KV memory of a coupled instance: of sequences that run, and, with prefix caching, blocks that may be used again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mooncake_core.sim.block_cache import BlockCache
from mooncake_core.sim.job import Job
from mooncake_core.store.eviction import Eviction


@dataclass(slots=True)
class _Share:
    """What a sequence holds."""

    private_tokens: int
    shared: Sequence[bytes]


class KVMemory:
    """Counts tokens: what the last block of a sequence wastes is left out."""

    def __init__(self, num_blocks: int, block_tokens: int, new_policy: Callable[[], Eviction] | None) -> None:
        """Without a policy nothing is cached."""
        self.capacity_tokens = num_blocks * block_tokens
        self._block_tokens = block_tokens
        self._cache = BlockCache([("hbm", num_blocks)], new_policy) if new_policy else None
        self._shares: dict[Job, _Share] = {}
        self._private_tokens = 0
        self._growth_tokens = 0
        self.most_used_tokens = 0
        """The most that could not be evicted at any time."""

    @property
    def free_tokens(self) -> int:
        """Unused, or evictable."""
        return self.capacity_tokens - self.used_tokens

    @property
    def used_tokens(self) -> int:
        """That cannot be evicted."""
        pinned = self._cache.num_pinned() if self._cache is not None else 0
        return self._private_tokens + pinned * self._block_tokens

    @property
    def num_cached(self) -> int:
        """Blocks that others may use."""
        return len(self._cache) if self._cache is not None else 0

    @property
    def held_tokens(self) -> int:
        """All of them, evictable ones too."""
        return self._private_tokens + self.num_cached * self._block_tokens

    def match(self, job: Job) -> int:
        """Leading blocks of its prompt that are cached."""
        return self._cache.match(job.keys)[0] if self._cache is not None else 0

    def admit(self, job: Job, blocks: int, now: float) -> None:
        """Gives a sequence memory, of which so many leading blocks are cached ones."""
        shared = job.keys[:blocks]
        private = job.context_tokens - blocks * self._block_tokens
        if self._cache is not None:
            self._cache.use(shared, now)
            self._cache.pin(shared)
        self._shares[job] = _Share(private, shared)
        self._change_private(private, now)

    def publish(self, job: Job, now: float) -> None:
        """Its prompt is computed: others may use the blocks from now on."""
        if self._cache is None:
            return
        share = self._shares[job]
        new = job.keys[len(share.shared) :]
        released = len(new) * self._block_tokens
        share.private_tokens -= released
        self._change_private(-released, now)
        self._cache.store(new, now)
        self._cache.pin(new)
        share.shared = job.keys

    def set_growth(self, tokens: int, now: float) -> None:
        """Sequences have, or are about to have, so many tokens together that came after their prompts."""
        self._change_private(tokens - self._growth_tokens, now)
        self._growth_tokens = tokens

    def free(self, job: Job, now: float) -> None:
        """A sequence is gone; what is cached of it may be evicted."""
        share = self._shares.pop(job, None)
        if share is None:
            return
        if self._cache is not None:
            self._cache.unpin(share.shared)
        self._change_private(-share.private_tokens, now)

    def _change_private(self, tokens: int, now: float) -> None:
        self._private_tokens += tokens
        self.most_used_tokens = max(self.most_used_tokens, self.used_tokens)
        if self._cache is not None:
            self._cache.shrink((self.capacity_tokens - self._private_tokens) // self._block_tokens, now)
