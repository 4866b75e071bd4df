"""The paper's plots of a replayed trace: times to first token, goodput over the limit of TBT, load and rejections over time."""

from __future__ import annotations

from pathlib import Path

from mooncake_core.bench.plots import plot_cdf, plot_over_time
from mooncake_core.bench.trace import TraceResult


def plot_all(folder: Path, result: TraceResult) -> None:
    """Writes them into a folder, which is there.

    Raises:
        PluginUnavailable: matplotlib is not installed.
    """
    systems = {system.name: system for system in result.report.systems}
    plot_cdf(folder / "ttft.png", "Time to first token", "seconds", _column(result, "ttft_s"))
    plot_cdf(
        folder / "tbt.png",
        "Time between tokens: slowest tenth of each request's gaps",
        "seconds",
        _column(result, "tbt_s"),
    )
    for name, system in systems.items():
        samples = system.samples
        pools = {
            "prefill": [(sample.at_s, sample.prefill_load) for sample in samples],
            "decode": [(sample.at_s, sample.decode_load) for sample in samples],
        }
        plot_over_time(folder / f"load-{name}.png", f"Load over objective: {name}", "load", pools)
    rejections = {
        name: [(sample.at_s, float(sample.rejected)) for sample in system.samples] for name, system in systems.items()
    }
    plot_over_time(folder / "rejections.png", "Requests rejected until then", "requests", rejections)
    limits = {
        name: [(entry.tbt_s, entry.goodput_ratio) for entry in system.thresholds] for name, system in systems.items()
    }
    if any(limits.values()):
        plot_over_time(folder / "goodput.png", "Goodput", "share of requests", limits, "limit of TBT (s)")


def _column(result: TraceResult, name: str) -> dict[str, list[float]]:
    """Of completed requests that have such a value."""
    found = {}
    for system, records in result.records.items():
        values = records.column(name)[records.where("outcome", "completed")]
        found[system] = values[values >= 0].tolist()
    return found
