"""mooncake bench store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mooncake_cli import console, exits, progress
from mooncake_cli.options import Running, cluster_options, find_running, json_option
from mooncake_cli.quantities import BUSY_POLL, SIZE, ListType

if TYPE_CHECKING:
    from mooncake_core.bench.statistics import Estimate, Quantiles
    from mooncake_core.bench.store import Side, StoreCell, StoreReport

RUNS_ALONE: Final = 3

HELP: Final = """Measure the pool through `mooncake.store`, the API that vLLM, SGLang and LMCache call.

\b
Examples:
  mooncake bench store --protocol tcp,shm --checksum auto,off
  mooncake bench store --against ~/upstream-venv --out results
  mooncake bench store --cases 4KiB --busy-poll 0,100us
  mooncake bench store --cases 1MiBx32 --operations mixed --reads 0.95 --zipf 0.99 --hits 0.8 -c cluster.yaml

Without -c and --cluster it starts a master and a segment of its own. Objects are put by one process and read by another;
each has bytes of its own, which are compared outside of the timed part. Beside each figure stands what a raw socket to
another process and a memcpy do with the same sizes. --against runs the same load with the `mooncake.store` of another
Python, such as upstream's wheel with its own master, in turn. Exit code 1 if --at-least is missed.
"""


class CaseType(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """Object size and objects per call."""

    name = "size[xbatch]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from mooncake_core.bench.store_plan import parse_case

        try:
            return parse_case(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("store", help=HELP, short_help="Measure the pool through mooncake.store, alone or against another.")
@click.option(
    "--cases",
    default="4KiB,64KiB,1MiB,4MiB,4KiBx128,64KiBx64,1MiBx32,16MiBx4",
    show_default=True,
    type=ListType(CaseType()),
    help="Bytes per object, and objects per call.",
)
@click.option(
    "--operations",
    default="put,get,exist",
    show_default=True,
    type=ListType(click.Choice(["put", "get", "exist", "mixed"])),
    help="mixed gets and puts in turn, at random.",
)
@click.option("--case-bytes", default="384MiB", show_default=True, type=SIZE, help="Put so much per case, about.")
@click.option(
    "--protocol",
    "protocols",
    default="tcp",
    show_default=True,
    type=ListType(click.STRING),
    help="As setup is told; --against gets the first.",
)
@click.option(
    "--checksum",
    "checksums",
    default="auto",
    show_default=True,
    type=ListType(click.Choice(["auto", "on", "off"])),
    help="auto: of what comes over a network; of each protocol, in turn. Not for --against.",
)
@click.option(
    "--busy-poll",
    "busy_polls",
    default="0",
    show_default=True,
    type=ListType(BUSY_POLL),
    help="Look so long (as 100us) before sleeping; of each protocol, in turn. Not for --against.",
)
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1), help="That put; as many get.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Of each process.")
@click.option("--nodes", default=1, show_default=True, type=click.IntRange(1), help="Segments to start.")
@click.option(
    "--reads", default=0.9, show_default=True, type=click.FloatRange(0, 1), help="mixed: share of calls that get."
)
@click.option(
    "--hits", type=click.FloatRange(0, 1), help="Share of keys that are there. Default: 1 for get, 0.5 for exist."
)
@click.option(
    "--zipf",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Exponent of reuse: with 0 each object is read once.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of what is read.")
@click.option("--against", help="A Python, or the folder of its virtual environment, with another mooncake.store.")
@click.option("--pairs", type=click.IntRange(1), help=f"Runs. Default: 10 with --against, else {RUNS_ALONE}.")
@click.option("--at-least", type=click.FloatRange(0), help="With --against: exit 1 if a ratio of rates is below.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for report.json and plots.")
@cluster_options
@json_option
def command(
    protocols: list[str],
    checksums: list[str],
    busy_polls: list[float],
    nodes: int,
    against: str | None,
    pairs: int | None,
    at_least: float | None,
    out: Path | None,
    as_json: bool,
    config_path: Path | None,
    overrides: tuple[str, ...],
    cluster: str | None,
    **load: Any,
) -> int:
    from mooncake_core.bench.compare import FEWEST_PAIRS
    from mooncake_core.bench.machine import busy_warning
    from mooncake_core.bench.store import StoreRun, StoreSettings, num_steps
    from mooncake_core.bench.store_plan import StoreLoad
    from mooncake_core.bench.store_processes import find_interpreter

    if at_least is not None and not against:
        raise click.UsageError("--at-least belongs to --against: give both")
    settings = StoreSettings(
        load=StoreLoad(**load), pairs=pairs or (FEWEST_PAIRS if against else RUNS_ALONE), nodes=nodes
    )
    uses_running = config_path is not None or cluster is not None
    own = _own(
        protocols, checksums, busy_polls, find_running(config_path, overrides, cluster) if uses_running else None
    )
    rival = _rival(find_interpreter(against).python, protocols[0]) if against else None
    warning = busy_warning()
    if warning:
        console.note(f"warning: {warning}")
    counter = progress.counter(num_steps(settings, len(own) + bool(rival)), "runs")
    run = StoreRun(settings, own, rival, warnings=[warning] if warning else [], on_progress=counter)
    finished = True
    try:
        run.execute()
    except KeyboardInterrupt:
        console.note("interrupted: what was measured until now")
        finished = False
    return _end(run.report(), at_least, out, as_json=as_json, finished=finished)


def _own(protocols: list[str], checksums: list[str], busy_polls: list[float], running: Running | None) -> list[Side]:
    from mooncake_core.bench.store import Side

    master = running.master_address.removeprefix("tcp://") if running else ""
    key_file = running.key_file or "" if running else ""
    return [
        Side(
            name=_name(protocol, checksum, busy_poll_s),
            python=sys.executable,
            protocol=protocol,
            master=master,
            key_file=key_file,
            checksum=checksum,
            busy_poll_s=busy_poll_s,
            tls=running.tls if running else None,
            weights=dict(running.weights) if running else {},
        )
        for protocol in protocols
        for checksum in checksums
        for busy_poll_s in busy_polls
    ]


def _name(protocol: str, checksum: str, busy_poll_s: float) -> str:
    from mooncake_core.units import format_duration

    parts = [f"mooncake {protocol}"]
    if checksum != "auto":
        parts.append(f"checksum {checksum}")
    if busy_poll_s:
        parts.append(f"busy poll {format_duration(busy_poll_s)}")
    return ", ".join(parts)


def _rival(python: str, protocol: str) -> Side:
    from mooncake_core.bench.store import Side

    return Side(name=python, python=python, protocol=protocol)


def _end(report: StoreReport, at_least: float | None, out: Path | None, *, as_json: bool, finished: bool) -> int:
    import msgspec

    if as_json:
        console.json(msgspec.to_builtins(report))
    else:
        _print(report)
    _write(out, report)
    if not finished:
        return exits.INTERRUPTED
    return exits.FAILED if _missed(report, at_least) else exits.DONE


def _missed(report: StoreReport, at_least: float | None) -> bool:
    """Names what is below; nothing is asked for without --at-least."""
    if at_least is None:
        return False
    missed = [cell for cell in report.cells if cell.rate_ratio is None or cell.rate_ratio.median < at_least]
    for cell in missed:
        found = "nothing" if cell.rate_ratio is None else f"{cell.rate_ratio.median:.3f}"
        console.error(
            f"{cell.side} {cell.operation} {_case(cell)}: expected at least {at_least:g} times, found {found}"
        )
    return bool(missed)


def _print(report: StoreReport) -> None:
    columns = ["side", "", "objects", "p50", "p99", "GB/s", "keys/s"]
    if report.against:
        columns += ["against p50", "GB/s", "keys/s", "ratio", "95% interval", "p50 ratio"]
    columns += ["socket GB/s", "of it", "memcpy GB/s", "of it"]
    console.table(columns, [_row(cell, compared=bool(report.against)) for cell in report.cells])
    load, settings = report.settings.load, report.settings
    console.data(
        f"{settings.pairs - report.unfinished} runs each, {load.processes} processes x {load.threads} threads that put, "
        f"as many that get, {settings.nodes} segments, zipf {load.zipf:g}, seed {load.seed}, {report.cores} cores"
    )
    if report.against:
        console.data(f"against {report.against}; a rate's ratio above 1 is better, a p50's below 1")
    if report.unfinished:
        console.data(f"not measured: {report.unfinished} of {settings.pairs} runs")


def _row(cell: StoreCell, *, compared: bool) -> list[object]:
    ours, theirs = cell.ours, cell.against
    row: list[object] = [cell.side, cell.operation, _case(cell), _time(ours.latency_s, "p50")]
    row += [_time(ours.latency_s, "p99"), _rate(ours.bytes_per_s), f"{ours.keys_per_s:,.0f}"]
    if compared and theirs:
        row += [_time(theirs.latency_s, "p50"), _rate(theirs.bytes_per_s), f"{theirs.keys_per_s:,.0f}"]
        row += [_ratio(cell.rate_ratio), _interval(cell.rate_ratio), _ratio(cell.p50_ratio)]
    row += [_rate(cell.socket_bytes_per_s), _ratio(cell.of_socket)]
    return [*row, _rate(cell.memcpy_bytes_per_s), _ratio(cell.of_memcpy)]


def _case(cell: StoreCell) -> str:
    from mooncake_core.bench.store_plan import EXIST_BATCH, StoreCase

    if cell.operation == "exist":
        return f"{EXIST_BATCH} keys"
    return StoreCase(cell.object_bytes, cell.batch).name


def _time(found: Quantiles | None, which: str) -> str:
    from mooncake_core.units import format_duration

    return "-" if found is None else format_duration(getattr(found, which))


def _rate(bytes_per_s: float | None) -> str:
    return f"{bytes_per_s / 1e9:.3f}" if bytes_per_s else "-"


def _ratio(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.median:.2f}"


def _interval(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.low:.2f} to {found.high:.2f}"


def _write(out: Path | None, report: StoreReport) -> None:
    """report.json, and a plot per operation that moves bytes; without matplotlib the report alone."""
    if out is None:
        return
    from mooncake_core.bench.plots import plot_lines
    from mooncake_core.errors import PluginUnavailable

    console.json_file(out / "report.json", report)
    for operation in sorted({cell.operation for cell in report.cells} - {"exist"}):
        lines: dict[str, list[tuple[float, float]]] = {}
        for cell in report.cells:
            if cell.operation == operation:
                _add_points(lines, cell, report.against)
        try:
            plot_lines(out / f"{operation}.png", f"Store: {operation}", ("bytes per call", "GB/s"), lines)
        except PluginUnavailable as error:
            console.note(str(error))
            return


def _add_points(lines: dict[str, list[tuple[float, float]]], cell: StoreCell, against: str) -> None:
    """One cell's rates, in the lines of single objects or of batches."""
    kind = " in batches" if cell.batch > 1 else ""
    rates = {
        cell.side: cell.ours.bytes_per_s,
        against: cell.against.bytes_per_s if cell.against else None,
        "raw socket": cell.socket_bytes_per_s,
        "memcpy": cell.memcpy_bytes_per_s,
    }
    for name, rate in rates.items():
        point = (cell.object_bytes * cell.batch, (rate or 0.0) / 1e9)
        line = lines.setdefault(f"{name}{kind}", []) if rate else []
        if point not in line:  # the other side and the baselines stand beside each of ours
            line.append(point)
