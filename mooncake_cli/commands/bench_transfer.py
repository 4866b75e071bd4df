"""mooncake bench transfer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mooncake_cli import console, exits, progress
from mooncake_cli.options import json_option
from mooncake_cli.quantities import DURATION, SIZE, ListType

if TYPE_CHECKING:
    from mooncake_core.bench.statistics import Estimate, Quantiles
    from mooncake_core.bench.transfer import Cell, TransferReport

HELP = """Measure the Transfer Engine between two processes of this host.

\b
Example:
  mooncake bench transfer --transport tcp,shm --sizes 64KiB,4MiB --at-least 0.9

Beside each figure stands what the machine does without the engine, measured alternately in the same run: a raw
blocking socket per connection for transports of a network, memcpy for those of one host. Regions are larger than the
last level cache. Bytes are checked before the clock runs. Exit code 1 if --at-least is missed.
"""


@click.command("transfer", help=HELP, short_help="Measure the Transfer Engine on this host.")
@click.option(
    "--transport",
    "transports",
    default="tcp,shm,local",
    show_default=True,
    type=ListType(click.STRING),
    help="local is within one process.",
)
@click.option("--sizes", default="64KiB,1MiB,4MiB,16MiB", show_default=True, type=ListType(SIZE), help="Of blocks.")
@click.option(
    "--direction",
    "kinds",
    default="read,write",
    show_default=True,
    type=ListType(click.Choice(["read", "write"])),
    help="Seen from the initiator.",
)
@click.option(
    "--checksum",
    "checksums",
    default="off,on",
    show_default=True,
    type=ListType(click.Choice(["off", "on"])),
    help="Sum each block with xxh3-64, as the store's client does.",
)
@click.option("--batch", default=4, show_default=True, type=click.IntRange(1), help="Blocks moved at once by a thread.")
@click.option(
    "--threads", default=2, show_default=True, type=click.IntRange(1), help="That move blocks and wait for them."
)
@click.option("--connections", default=2, show_default=True, type=click.IntRange(1), help="To the peer.")
@click.option("--seconds", default="300ms", show_default=True, type=DURATION, help="Of each measurement.")
@click.option("--pairs", default=10, show_default=True, type=click.IntRange(10), help="Alternating measurements.")
@click.option("--memory", "memory_bytes", type=SIZE, help="Of each region. Default: more than the last level cache.")
@click.option("--at-least", type=click.FloatRange(0), help="Exit 1 if a share of the baseline is below.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for report.json and plots.")
@json_option
def command(
    memory_bytes: int | None,
    checksums: list[str],
    at_least: float | None,
    out: Path | None,
    as_json: bool,
    **wanted: Any,
) -> int:
    import msgspec

    from mooncake_core.bench.transfer import TransferRun, TransferSettings, num_cells

    if min(wanted["sizes"]) == 0:
        raise click.UsageError("--sizes: expected blocks of 1 byte or more, got 0")
    summed = [choice == "on" for choice in checksums]
    settings = TransferSettings(**wanted, checksums=summed, memory_bytes=memory_bytes or 0)
    run = TransferRun(settings, progress.counter(num_cells(settings, settings.transports), "rows"))
    finished = True
    try:
        run.execute()
    except KeyboardInterrupt:
        console.note("interrupted: what was measured until now")
        finished = False
    report = run.report()
    for reason in report.skipped.values():
        console.note(f"skipped: {reason}")
    if as_json:
        console.json(msgspec.to_builtins(report))
    else:
        _print(report)
    _write(out, report)
    if not finished:
        return exits.INTERRUPTED
    return exits.FAILED if _missed(report, at_least) else exits.DONE


def _missed(report: TransferReport, at_least: float | None) -> bool:
    """Names what is below; nothing is asked for without --at-least."""
    if at_least is None:
        return False
    missed = [cell for cell in report.cells if cell.of_baseline is None or cell.of_baseline.median < at_least]
    for cell in missed:
        found = "nothing" if cell.of_baseline is None else f"{cell.of_baseline.median:.3f}"
        console.error(f"{_name(cell)}: expected at least {at_least:g} of the {cell.baseline} baseline, found {found}")
    return bool(missed)


def _name(cell: Cell) -> str:
    from mooncake_core.units import format_size

    summed = " with checksum" if cell.checksum else ""
    return f"{cell.transport} {cell.kind} {format_size(cell.block_bytes)}{summed}"


def _print(report: TransferReport) -> None:
    from mooncake_core.units import format_size

    columns = ["transport", "", "block", "checksum", "p50", "p99", "GB/s", "baseline", "GB/s", "of it", "95% interval"]
    console.table([*columns, "of it unsummed"], [_row(cell) for cell in report.cells])
    settings = report.settings
    console.data(
        f"latencies are of {settings.batch} blocks; {settings.threads} threads, {settings.connections} connections, "
        f"regions of {format_size(report.memory_bytes)}, {settings.pairs} pairs of {settings.seconds:g}s, "
        f"{report.cores} cores"
    )
    if report.unfinished:
        console.data(f"not measured: {report.unfinished} rows")


def _row(cell: Cell) -> list[object]:
    from mooncake_core.units import format_size

    ratio = cell.of_baseline
    return [
        cell.transport,
        cell.kind,
        format_size(cell.block_bytes),
        "on" if cell.checksum else "off",
        _duration(cell.latency_s, "p50"),
        _duration(cell.latency_s, "p99"),
        f"{cell.bytes_per_s / 1e9:.2f}",
        cell.baseline,
        f"{cell.baseline_bytes_per_s / 1e9:.2f}",
        _share(ratio),
        "-" if ratio is None else f"{ratio.low:.1%} to {ratio.high:.1%}",
        _share(cell.of_raw),
    ]


def _share(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.median:.1%}"


def _duration(found: Quantiles | None, which: str) -> str:
    from mooncake_core.units import format_duration

    return "-" if found is None else format_duration(getattr(found, which))


def _write(out: Path | None, report: TransferReport) -> None:
    """report.json, and a plot per direction; without matplotlib the report alone."""
    if out is None:
        return
    from mooncake_core.bench.plots import plot_lines
    from mooncake_core.errors import PluginUnavailable

    console.json_file(out / "report.json", report)
    for kind in report.settings.kinds:
        series: dict[str, list[tuple[float, float]]] = {}
        for cell in report.cells:
            if cell.kind == kind and not cell.checksum:
                series.setdefault(cell.transport, []).append((cell.block_bytes, cell.bytes_per_s / 1e9))
                name = f"{cell.transport}: {cell.baseline} baseline"
                series.setdefault(name, []).append((cell.block_bytes, cell.baseline_bytes_per_s / 1e9))
        try:
            plot_lines(out / f"{kind}.png", f"Transfers: {kind}", ("block (bytes)", "GB/s"), series)
        except PluginUnavailable as error:
            console.note(str(error))
            return
