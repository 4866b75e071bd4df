"""Jobs of a generated load: prompts of one length that come by chance, and share prefixes by family."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mooncake_core.kvcache.keys import KEY_BYTES, reusable_blocks
from mooncake_core.sim.job import Job
from mooncake_core.sim.settings import WorkloadSettings


def generate_jobs(workload: WorkloadSettings, *, block_tokens: int, seed: int, speed: float = 1.0) -> Iterator[Job]:
    """The requests; with another speed the same ones come, in the same order."""
    rng = np.random.default_rng(seed)
    blocks = reusable_blocks(workload.input_tokens, block_tokens)
    shared = min(blocks, int(workload.input_tokens * workload.shared) // block_tokens)
    families = [_keys(family * blocks, shared) for family in range(workload.families)]
    names = list(workload.tenants)
    parts = np.array(list(workload.tenants.values()))
    at = 0.0
    for number in range(workload.requests):
        at += float(rng.exponential(1 / workload.rate))
        prefix = families[int(rng.integers(workload.families))]
        yield Job(
            number=number,
            arrived_at=at / speed,
            prompt_tokens=workload.input_tokens,
            output_tokens=workload.output_tokens,
            keys=[*prefix, *_keys((workload.families + number) * blocks, blocks - shared)],
            tenant=names[int(rng.choice(len(names), p=parts / parts.sum()))] if names else "",
        )


def _keys(first: int, count: int) -> list[bytes]:
    return [(first + index).to_bytes(KEY_BYTES, "big") for index in range(count)]
