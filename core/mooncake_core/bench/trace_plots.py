"""The paper's plots of a replayed trace: times to first token, goodput over the limit of TBT, load and rejections over time."""

from __future__ import annotations

from pathlib import Path

from mooncake_core.bench.plots import plot_cdf, plot_over_time
from mooncake_core.bench.trace import TraceReport


def plot_all(folder: Path, report: TraceReport) -> None:
    """Writes them into a folder, which is there.

    Raises:
        PluginUnavailable: matplotlib is not installed.
    """
    systems = {system.summary.name: system for system in report.systems}
    plot_cdf(
        folder / "ttft.png",
        "Time to first token",
        "seconds",
        {name: system.ttfts_s for name, system in systems.items()},
    )
    plot_cdf(
        folder / "tbt.png",
        "Time between tokens: slowest tenth of each request's gaps",
        "seconds",
        {name: system.tbts_s for name, system in systems.items()},
    )
    for name, system in systems.items():
        samples = system.summary.samples
        pools = {
            "prefill": [(sample.at_s, sample.prefill_load) for sample in samples],
            "decode": [(sample.at_s, sample.decode_load) for sample in samples],
        }
        plot_over_time(folder / f"load-{name}.png", f"Load over objective: {name}", "load", pools)
    rejections = {
        name: [(sample.at_s, float(sample.rejected)) for sample in system.summary.samples]
        for name, system in systems.items()
    }
    plot_over_time(folder / "rejections.png", "Requests rejected until then", "requests", rejections)
    limits = {
        name: [(entry.tbt_s, entry.goodput_ratio) for entry in system.summary.thresholds]
        for name, system in systems.items()
    }
    if any(limits.values()):
        plot_over_time(folder / "goodput.png", "Goodput", "share of requests", limits, "limit of TBT (s)")
