"""The pool's report with what others of the master's parts know: one for `mooncake inspect cache` and for the metrics."""

from __future__ import annotations

import msgspec

from mooncake_core.roles.master.conductor import ConductorDriver
from mooncake_core.roles.master.memory import MasterMemory, resident_bytes
from mooncake_core.roles.master.pool import PoolDriver
from mooncake_core.wire.messages.inspection import CacheReport, InspectCache


class CacheReporter:
    """Made when the master starts: memory per object is what has come since."""

    def __init__(self, pool: PoolDriver, conductor: ConductorDriver) -> None:
        self._pool = pool
        self._conductor = conductor
        self._memory = MasterMemory()

    def report(self, asked: InspectCache) -> CacheReport:
        """As of now."""
        pool, conductor = self._pool.pool, self._conductor
        report = pool.report(self._pool.now(), prefix=asked.prefix, limit=asked.limit, num_hottest=asked.hottest)
        return msgspec.structs.replace(
            report,
            prompt_tokens=conductor.prompt_tokens,
            cached_tokens=conductor.cached_tokens,
            cached_tokens_by_tier=dict(conductor.cached_tokens_by_tier),
            problems=[*pool.check(), *conductor.conductor.check()] if asked.check else [],
            master_bytes=resident_bytes(),
            master_bytes_per_object=self._memory.per_object_bytes(report.num_objects),
        )
