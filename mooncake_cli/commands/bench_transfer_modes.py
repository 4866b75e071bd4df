"""The other ways of `mooncake bench transfer`: the far end alone, and a comparison with another engine."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mooncake_cli import console, exits, progress

if TYPE_CHECKING:
    from mooncake_core.bench.engine_compare import EngineCell, EngineReport, EngineSettings, EngineSide


class Offer(NamedTuple):
    """What the far end is to offer, and how."""

    transports: list[str]
    host: str
    port: int
    memory_bytes: int | None
    busy_poll_s: float


def serve_target(offered: Offer, *, as_json: bool) -> int:
    """Offers memory until it is told to end."""
    from mooncake_core.address import HostPort
    from mooncake_core.bench.transfer import available_transports, last_level_cache_bytes
    from mooncake_core.bench.transfer_target import offer
    from mooncake_core.transfer.paths import LOCAL
    from mooncake_core.units import format_size

    skipped: dict[str, str] = {}
    names = list(available_transports([name for name in offered.transports if name != LOCAL], skipped))
    for reason in skipped.values():
        console.note(f"skipped: {reason}")
    num_bytes = offered.memory_bytes or last_level_cache_bytes()
    with offer(names, num_bytes, host=offered.host, port=offered.port, busy_poll_s=offered.busy_poll_s) as ready:
        address = str(HostPort(offered.host, ready.raw_port))
        if as_json:
            console.json({"address": address, "transports": names, "memory_bytes": num_bytes})
        else:
            console.data(f"target of {format_size(num_bytes)} over {', '.join(names)}, until Ctrl-C; measure with")
            console.data(f"  mooncake bench transfer --initiator {address}")
        try:
            signal.pause()
        except KeyboardInterrupt:
            return exits.DONE
    return exits.DONE


def compare(settings: EngineSettings, at_least: float | None, out: Path | None, *, as_json: bool) -> int:
    """This project's engine and another's, alternating."""
    import msgspec

    from mooncake_core.bench.engine_compare import EngineRun, num_cells

    run = EngineRun(settings, progress.counter(num_cells(settings), "rows"))
    finished = True
    try:
        run.execute()
    except KeyboardInterrupt:
        console.note("interrupted: what was measured until now")
        finished = False
    report = run.report()
    if as_json:
        console.json(msgspec.to_builtins(report))
    else:
        _print(report)
    _write(out, report)
    if not finished:
        return exits.INTERRUPTED
    return exits.FAILED if _missed(report, at_least) else exits.DONE


def _print(report: EngineReport) -> None:
    from mooncake_core.units import format_size

    columns = ["transport", "", "block", "p50", "p99", "GB/s", "against p50", "p99", "GB/s", "ratio", "95% interval"]
    console.table(columns, [_row(cell) for cell in report.cells])
    settings = report.settings
    console.data(
        f"mooncake.engine; latencies are of {settings.batch} blocks, {_placed(settings)}; {settings.threads} threads, "
        f"{looking(settings.busy_poll_s)}"
        f"regions of {format_size(settings.memory_bytes)}, {settings.pairs} pairs of {settings.seconds:g}s, "
        f"{report.cores} cores"
    )
    console.data(f"against {report.against_engine} of {settings.against}; a ratio above 1 is better")
    if report.unfinished:
        console.data(f"not measured: {report.unfinished} rows")


def looking(busy_poll_s: float) -> str:
    """What to say of looking before sleeping, among other things."""
    from mooncake_core.units import format_duration

    return f"busy poll {format_duration(busy_poll_s)}, " if busy_poll_s else ""


def _placed(settings: EngineSettings) -> str:
    return "apart from each other" if settings.scattered else "side by side"


def _row(cell: EngineCell) -> list[object]:
    from mooncake_core.units import format_size

    ratio = cell.ratio
    return [
        cell.transport,
        cell.kind,
        format_size(cell.block_bytes),
        *_columns(cell.ours),
        *_columns(cell.against),
        "-" if ratio is None else f"{ratio.median:.2f}",
        "-" if ratio is None else f"{ratio.low:.2f} to {ratio.high:.2f}",
    ]


def _columns(side: EngineSide) -> list[str]:
    from mooncake_core.units import format_duration

    found = side.latency_s
    times = ["-", "-"] if found is None else [format_duration(found.p50), format_duration(found.p99)]
    return [*times, f"{side.bytes_per_s / 1e9:.3f}"]


def _missed(report: EngineReport, at_least: float | None) -> bool:
    """Names what is below; nothing is asked for without --at-least."""
    from mooncake_core.units import format_size

    if at_least is None:
        return False
    missed = [cell for cell in report.cells if cell.ratio is None or cell.ratio.median < at_least]
    for cell in missed:
        found = "nothing" if cell.ratio is None else f"{cell.ratio.median:.3f}"
        console.error(
            f"{cell.transport} {cell.kind} {format_size(cell.block_bytes)}: expected at least {at_least:g} times the other, "
            f"found {found}"
        )
    return bool(missed)


def _write(out: Path | None, report: EngineReport) -> None:
    """report.json, and a plot per direction; without matplotlib the report alone."""
    if out is None:
        return
    from mooncake_core.bench.plots import plot_lines
    from mooncake_core.errors import PluginUnavailable

    console.json_file(out / "report.json", report)
    for kind in report.settings.kinds:
        series: dict[str, list[tuple[float, float]]] = {}
        for cell in report.cells:
            if cell.kind == kind:
                for name, side in (("ours", cell.ours), ("against", cell.against)):
                    point = (float(cell.block_bytes), side.bytes_per_s / 1e9)
                    series.setdefault(f"{cell.transport}: {name}", []).append(point)
        try:
            plot_lines(out / f"{kind}.png", f"mooncake.engine: {kind}", ("block (bytes)", "GB/s"), series)
        except PluginUnavailable as error:
            console.note(str(error))
            return
