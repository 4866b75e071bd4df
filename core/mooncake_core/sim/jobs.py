"""Jobs out of the requests of a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mooncake_core.kvcache.keys import KEY_BYTES, reusable_blocks
from mooncake_core.sim.job import Job
from mooncake_core.workload.blocks import ids_in_blocks
from mooncake_core.workload.request import TraceRequest


def make_jobs(
    requests: Iterable[TraceRequest], *, block_tokens: int, speed: float = 1.0, partial_blocks: bool = False
) -> Iterator[Job]:
    """What a cluster with blocks of so many tokens has to do, `speed` times as fast. With `partial_blocks` the last, partly
    filled block may be used again too, as published hit ratios count it; the live system keeps full blocks only.

    Raises:
        UsageError: the trace names blocks of a size of which the cluster's is neither a part nor a multiple.
    """
    keys: dict[int, bytes] = {}  # equal blocks share one object
    for number, request in enumerate(requests):
        names = ids_in_blocks(request, block_tokens)
        if not partial_blocks:
            names = names[: reusable_blocks(request.input_tokens, block_tokens)]
        for name in names:
            if name not in keys:
                keys[name] = name.to_bytes(KEY_BYTES, "big", signed=True)
        yield Job(
            number=number,
            arrived_at=request.arrival_s / speed,
            prompt_tokens=request.input_tokens,
            output_tokens=max(1, request.output_tokens),
            keys=[keys[name] for name in names],
            tenant=request.tenant,
            priority=-request.priority,  # here lower is earlier
        )
