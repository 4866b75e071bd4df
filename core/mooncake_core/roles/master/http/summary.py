"""The pool in one line, for logs and people."""

from __future__ import annotations

from mooncake_core.roles.master.http.state import MasterState
from mooncake_core.units import format_duration, format_size


def summary(state: MasterState) -> str:
    """What matters most of the metrics; counters count since the master's start."""
    report = state.report()
    parts = [
        f"role=leader, state=serving, term={state.term}, leader={state.address}",
        f"objects={report.num_objects} (being written {report.num_writing})",
        f"used={format_size(report.used_bytes)} of {format_size(report.capacity_bytes)} on {len(report.nodes)} nodes",
        f"waiting to be free={format_size(report.quarantined_bytes)}",
        f"puts={report.puts} (skipped {report.skipped_puts}, refused {report.refused_puts})",
        f"reads={report.hits} hits, {report.misses} misses",
        f"evicted={report.evicted}",
        f"longest pause={format_duration(state.pauses.recent_s)}",
    ]
    return ", ".join(parts) + "\n"
