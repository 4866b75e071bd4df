"""mooncake inspect trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mooncake_cli import console, exits
from mooncake_cli.options import json_option, trace_options, trace_source

if TYPE_CHECKING:
    from mooncake_core.workload.analysis import Lengths, TraceSummary

HELP = """What a trace asks for, and how much of it a cache could have.

\b
Examples:
  mooncake inspect trace conversation_trace.jsonl
  mooncake inspect trace s3://bucket/trace.jsonl.gz --model configs/models/llama3-70b.yaml --out report

TRACE is a file, a folder of an LMCache lookup log, or a URL that fsspec knows, in any format that `mooncake trace formats`
lists. A block is hit when it and all before it in the prompt were used before; a partly filled last block counts where the
trace names it.
"""


@click.command("trace", help=HELP, short_help="A trace's requests, lengths, and hit ratio by capacity of a cache.")
@click.argument("trace")
@trace_options
@click.option("--model", type=click.Path(path_type=Path), help="A model's YAML: capacities in bytes of its KV too.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for report.json and lru.png.")
@json_option
def command(trace: str, model: Path | None, out: Path | None, as_json: bool, **reading: Any) -> int:
    import msgspec

    from mooncake_core.conductor.model_shape import load_model
    from mooncake_core.workload.analysis import analyse

    token_bytes = load_model(model).kv_bytes_per_token if model else None
    summary = analyse(trace_source(trace, **reading).read())
    report = {"trace": trace, "kv_bytes_per_token": token_bytes, **msgspec.to_builtins(summary)}
    if as_json:
        console.json(report)
    else:
        _print(summary, token_bytes)
    if out is not None:
        console.json_file(out / "report.json", report)
        _plot(out, summary)
    return exits.DONE


def _print(summary: TraceSummary, token_bytes: int | None) -> None:
    from mooncake_core.units import format_duration, format_size

    hits = summary.unbounded
    rows: list[tuple[str, object]] = [
        ("requests", f"{summary.requests:,}"),
        ("span", format_duration(summary.span_s)),
        ("arrivals", f"{summary.requests_per_s:.3g}/s, gaps vary by {summary.gap_variation:.2f} of their mean"),
        ("sessions", f"{summary.sessions:,}" if summary.sessions else "-"),
        ("prompt tokens", _lengths(summary.input_tokens)),
        ("answer tokens", _lengths(summary.output_tokens)),
        ("blocks", f"{summary.blocks:,} of {summary.block_tokens} tokens"),
        ("unique blocks", f"{summary.unique_blocks:,}"),
        ("hits, unbounded cache, blocks", f"{hits.blocks:.4f}"),
        ("hits, unbounded cache, tokens", f"{hits.tokens:.4f}"),
        ("the same over the last half", f"{hits.tokens_last_half:.4f}"),
    ]
    console.table(["trace", ""], rows)
    if not summary.lru:
        console.note("the trace names no blocks: nothing is known about prefixes")
        return
    console.data("")
    block_bytes = token_bytes * summary.block_tokens if token_bytes else None
    console.table(
        ["LRU capacity, blocks", *(["KV"] if block_bytes else []), "hits, blocks", "hits, tokens"],
        [
            [
                f"{entry.capacity_blocks:,}",
                *([format_size(entry.capacity_blocks * block_bytes)] if block_bytes else []),
                f"{entry.blocks:.4f}",
                f"{entry.tokens:.4f}",
            ]
            for entry in summary.lru
        ],
    )


def _lengths(lengths: Lengths) -> str:
    quantiles = f"p50 {lengths.p50:,}, p90 {lengths.p90:,}, p99 {lengths.p99:,}, longest {lengths.longest:,}"
    return f"mean {lengths.mean:,.0f}, {quantiles}"


def _plot(out: Path, summary: TraceSummary) -> None:
    """Without matplotlib none, which is said."""
    from mooncake_core.bench.plots import plot_lines
    from mooncake_core.errors import PluginUnavailable

    series = {
        "blocks": [(float(entry.capacity_blocks), entry.blocks) for entry in summary.lru],
        "tokens": [(float(entry.capacity_blocks), entry.tokens) for entry in summary.lru],
    }
    try:
        labels = (f"capacity (blocks of {summary.block_tokens} tokens)", "hit ratio")
        plot_lines(out / "lru.png", "LRU hit ratio by capacity", labels, series)
    except PluginUnavailable as error:
        console.note(str(error))
