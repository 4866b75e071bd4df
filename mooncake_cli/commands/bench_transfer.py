"""mooncake bench transfer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mooncake_cli import console, exits, progress
from mooncake_cli.options import json_option
from mooncake_cli.quantities import BUSY_POLL, DURATION, SIZE, ListType

if TYPE_CHECKING:
    from mooncake_core.address import HostPort
    from mooncake_core.bench.engine_compare import EngineSettings
    from mooncake_core.bench.host_steps import HostSteps
    from mooncake_core.bench.statistics import Estimate, Quantiles
    from mooncake_core.bench.transfer import Cell, TransferReport

BATCH: Final = 4
AGAINST_BATCH: Final = 64
SIZES: Final = [64 << 10, 1 << 20, 4 << 20, 16 << 20]
AGAINST_SIZES: Final = [64 << 10]
TRANSPORTS: Final = ["tcp", "shm", "local"]
AGAINST_TRANSPORTS: Final = ["tcp"]

HELP = """Measure the Transfer Engine between two processes, of this host or of two.

\b
Examples:
  mooncake bench transfer --transport tcp,shm --sizes 64KiB,4MiB --at-least 0.9
  mooncake bench transfer --target --host 10.0.0.2      (there)
  mooncake bench transfer --initiator 10.0.0.2:PORT     (here)
  mooncake bench transfer --transport tcp --sizes 1MiB --threads 10 --host-step 2ms
  mooncake bench transfer --against upstream/bin/python --sizes 64KiB --batch 64
  mooncake bench transfer --against nixl/bin/python --transport tcp,shm --sizes 64KiB,1MiB

Beside each figure stands what the machine does without the engine, measured alternately in the same run: a raw
blocking socket per connection for transports of a network, memcpy for those of one host, ib_write_bw and ib_read_bw for
rdma within one host. Regions are larger than the
last level cache. Bytes are checked before the clock runs. Exit code 1 if --at-least is missed.

--target offers memory until Ctrl-C: whoever reaches its host can read and write that memory, and nothing else. --against
measures `mooncake.engine` of this interpreter and of another in turn, over TCP or shared memory; an interpreter that has none
but NIXL moves the blocks with that, over UCX with the same transport (for shm: all that UCX knows within a host). --host-step
shows what an engine loses in whose process the threads move blocks: how much longer its own Python takes than when idle.
"""


@click.command("transfer", help=HELP, short_help="Measure the Transfer Engine on this host.")
@click.option(
    "--transport",
    "transports",
    type=ListType(click.STRING),
    help="local is within one process. Default: tcp,shm,local; tcp alone with --against, which knows shm too.",
)
@click.option(
    "--sizes", type=ListType(SIZE), help="Of blocks. Default: 64KiB,1MiB,4MiB,16MiB; 64KiB alone with --against."
)
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
@click.option(
    "--batch", type=click.IntRange(1), help="Blocks moved at once by a thread. Default: 4; 64 with --against."
)
@click.option(
    "--threads", default=2, show_default=True, type=click.IntRange(1), help="That move blocks and wait for them."
)
@click.option("--connections", default=2, show_default=True, type=click.IntRange(1), help="To the peer.")
@click.option(
    "--busy-poll",
    "busy_poll_s",
    default="0",
    show_default=True,
    type=BUSY_POLL,
    help="Look so long (as 100us) for what comes next before sleeping, here and at the target; not at one elsewhere, "
    "nor at --against.",
)
@click.option("--seconds", default="300ms", show_default=True, type=DURATION, help="Of each measurement.")
@click.option("--pairs", default=10, show_default=True, type=click.IntRange(10), help="Alternating measurements.")
@click.option(
    "--host-step",
    "host_step_s",
    type=DURATION,
    help="Compute in the main thread meanwhile, in steps of so long: how much longer do they take?",
)
@click.option("--memory", "memory_bytes", type=SIZE, help="Of each region. Default: more than the last level cache.")
@click.option("--target", "is_target", is_flag=True, help="Be the far end, for an initiator elsewhere.")
@click.option("--host", help="With --target: the address by which initiators reach it. Default: 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), help="With --target. Default: a free one.")
@click.option("--initiator", "target", help="Measure against the target at this address, which it printed.")
@click.option(
    "--against", help="A Python, or the folder of its virtual environment, with another mooncake.engine, or NIXL."
)
@click.option(
    "--scattered", is_flag=True, help="With --against: blocks lie apart, so that nobody moves several as one."
)
@click.option("--at-least", type=click.FloatRange(0), help="Exit 1 if a share of the baseline, or a ratio, is below.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for report.json and plots.")
@json_option
def command(
    memory_bytes: int | None,
    checksums: list[str],
    batch: int | None,
    host_step_s: float | None,
    is_target: bool,
    host: str | None,
    port: int | None,
    target: str | None,
    against: str | None,
    scattered: bool,
    at_least: float | None,
    out: Path | None,
    as_json: bool,
    **wanted: Any,
) -> int:
    from mooncake_cli.commands import bench_transfer_modes as modes

    if sum([is_target, target is not None, against is not None]) > 1:
        raise click.UsageError("--target, --initiator and --against are different things to do: give one of them")
    if not is_target and (host is not None or port is not None):
        raise click.UsageError("--host and --port belong to --target: give it as well")
    if scattered and against is None:
        raise click.UsageError("--scattered belongs to --against: give it as well")
    if host_step_s is not None and (is_target or against is not None):
        raise click.UsageError("--host-step is not for --target and --against: leave it out")
    wanted["sizes"] = wanted["sizes"] or (AGAINST_SIZES if against else SIZES)
    wanted["transports"] = wanted["transports"] or (AGAINST_TRANSPORTS if against else TRANSPORTS)
    if min(wanted["sizes"]) == 0:
        raise click.UsageError("--sizes: expected blocks of 1 byte or more, got 0")
    if is_target:
        offered = modes.Offer(wanted["transports"], host or "127.0.0.1", port or 0, memory_bytes, wanted["busy_poll_s"])
        return modes.serve_target(offered, as_json=as_json)
    if against is not None:
        return modes.compare(
            _engine_settings(against, {**wanted, "scattered": scattered}, batch, memory_bytes),
            at_least,
            out,
            as_json=as_json,
        )
    wanted["checksums"] = [choice == "on" for choice in checksums]
    wanted |= {"batch": batch or BATCH, "host_step_s": host_step_s or 0.0}
    return _measure(wanted, memory_bytes, target, at_least, out, as_json)


def _engine_settings(
    against: str, wanted: dict[str, Any], batch: int | None, memory_bytes: int | None
) -> EngineSettings:
    from mooncake_core.bench.engine_compare import EngineSettings
    from mooncake_core.bench.store_processes import find_interpreter

    given = {
        name: wanted[name]
        for name in ("transports", "sizes", "kinds", "scattered", "threads", "busy_poll_s", "seconds", "pairs")
    }
    if memory_bytes is not None:
        given["memory_bytes"] = memory_bytes
    return EngineSettings(against=find_interpreter(against).python, batch=batch or AGAINST_BATCH, **given)


def _measure(
    wanted: dict[str, Any],
    memory_bytes: int | None,
    target: str | None,
    at_least: float | None,
    out: Path | None,
    as_json: bool,
) -> int:
    import msgspec

    from mooncake_core.bench.transfer import TransferRun, TransferSettings, num_cells

    settings = TransferSettings(**wanted, memory_bytes=memory_bytes or 0)
    counter = progress.counter(num_cells(settings, settings.transports), "rows")
    run = TransferRun(settings, counter, target=None if target is None else _address(target))
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


def _address(text: str) -> HostPort:
    from mooncake_core.address import parse_host_port

    try:
        return parse_host_port(text)
    except ValueError as error:
        raise click.UsageError(f"--initiator: {error}") from error


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
    from mooncake_cli.commands import bench_transfer_modes as modes
    from mooncake_core.units import format_size

    columns = [
        "transport",
        "",
        "block",
        "checksum",
        "p50",
        "p99",
        "per block",
        "GB/s",
        "baseline",
        "GB/s",
        "of it",
        "95% interval",
    ]
    console.table([*columns, "of it unsummed"], [_row(cell) for cell in report.cells])
    settings = report.settings
    console.data(
        f"latencies are of {settings.batch} blocks; {settings.threads} threads, {settings.connections} connections, "
        f"{modes.looking(settings.busy_poll_s)}"
        f"regions of {format_size(report.memory_bytes)}, {settings.pairs} pairs of {settings.seconds:g}s, "
        f"{report.cores} cores"
    )
    if settings.host_step_s:
        _print_host(report)
    for transport in dict.fromkeys(lane.transport for lane in report.lanes):
        lanes = [lane for lane in report.lanes if lane.transport == transport]
        if len(lanes) > 1:
            carried = ", ".join(f"{lane.local} to {lane.peer} {format_size(lane.num_bytes)}" for lane in lanes)
            console.data(f"{transport} by link: {carried}")
    if report.unfinished:
        console.data(f"not measured: {report.unfinished} rows")


def _print_host(report: TransferReport) -> None:
    from mooncake_core.units import format_duration

    step = f"step of {format_duration(report.settings.host_step_s)}"
    columns = [step, "idle p50", "p99", "engine p50", "p99", "slower", "baseline", "p50", "p99", "slower"]
    console.data("")
    console.table(columns, [_host_row(cell, cell.host) for cell in report.cells if cell.host is not None])


def _host_row(cell: Cell, host: HostSteps) -> list[object]:
    def times(found: Quantiles | None) -> list[str]:
        return [_duration(found, "p50"), _duration(found, "p99")]

    def ratio(found: Estimate | None) -> str:
        return "-" if found is None else f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"

    return [
        _name(cell),
        *times(host.idle_s),
        *times(host.beside_engine_s),
        ratio(host.slower),
        cell.baseline,
        *times(host.beside_baseline_s),
        ratio(host.baseline_slower),
    ]


def _row(cell: Cell) -> list[object]:
    from mooncake_core.units import format_duration, format_size

    ratio = cell.of_baseline
    return [
        cell.transport,
        cell.kind,
        format_size(cell.block_bytes),
        "on" if cell.checksum else "off",
        _duration(cell.latency_s, "p50"),
        _duration(cell.latency_s, "p99"),
        "-" if cell.block_s is None else format_duration(cell.block_s),
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
