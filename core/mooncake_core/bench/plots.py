"""Plots of what was measured, with matplotlib, an optional dependency."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mooncake_core import whole_file
from mooncake_core.errors import PluginUnavailable

SIZE_INCHES: Final = (7.0, 4.5)
DPI: Final = 120


def plot_cdf(path: Path, title: str, label: str, series: Mapping[str, Sequence[float]]) -> None:
    """Shares of samples at or below a value, one line per series; the values are seconds.

    Raises:
        PluginUnavailable: matplotlib is not installed.
    """
    figure, axes = _figure(title)
    for name, samples in series.items():
        ordered = sorted(samples)
        if ordered:
            axes.step(ordered, [(rank + 1) / len(ordered) for rank in range(len(ordered))], where="post", label=name)
    axes.set_xlabel(label)
    axes.set_ylabel("share of samples")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")  # labels of minor ticks run into those of major ones
    axes.set_ylim(0, 1)
    _save(path, figure, axes, legend=len(series) > 1)


def plot_lines(
    path: Path, title: str, labels: tuple[str, str], series: Mapping[str, Sequence[tuple[float, float]]]
) -> None:
    """Lines over a logarithmic axis of sizes; a name that ends in "baseline" is drawn dashed.

    Raises:
        PluginUnavailable: matplotlib is not installed.
    """
    figure, axes = _figure(title)
    for name, points in series.items():
        style = "--" if name.endswith("baseline") else "-"
        axes.plot([x for x, _ in points], [y for _, y in points], style, marker="o", label=name)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    _save(path, figure, axes, legend=True)


def plot_over_time(
    path: Path,
    title: str,
    label: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    time_label: str = "seconds",
) -> None:
    """Lines over a linear axis.

    Raises:
        PluginUnavailable: matplotlib is not installed.
    """
    figure, axes = _figure(title)
    for name, points in series.items():
        axes.plot([x for x, _ in points], [y for _, y in points], linewidth=1.0, label=name)
    axes.set_xlabel(time_label)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    _save(path, figure, axes, legend=len(series) > 1)


def _figure(title: str) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PluginUnavailable(
            "no plots: matplotlib is not installed; pip install 'mooncake-toolkit[plot]'"
        ) from error
    # Not pyplot: it keeps figures alive and looks for a display.
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(path: Path, figure: Any, axes: Any, *, legend: bool) -> None:
    if legend:
        axes.legend(fontsize="small")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    whole_file.write(path, drawn.getvalue())
