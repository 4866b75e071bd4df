"""mooncake trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mooncake_cli import console, exits
from mooncake_cli.options import json_option, trace_options, trace_source
from mooncake_cli.quantities import DURATION

if TYPE_CHECKING:
    from mooncake_core.workload.generators import Families, Sessions
    from mooncake_core.workload.request import TraceRequest

_TO = click.option("--to", default="mooncake", show_default=True, help="Format to write; `mooncake trace formats`.")
_FORCE = click.option("--force", is_flag=True, help="Overwrite the file.")


@click.group("trace", help="Convert and generate traces. `mooncake inspect trace` looks into one.")
def command() -> None:
    """The group."""


@command.command("formats", help="The formats of traces: what they are called here, and where they are from.")
@json_option
def formats(as_json: bool) -> None:
    from mooncake_core.workload.formats import FORMATS

    found = [(name, known.about, "read, write" if known.write else "read") for name, known in FORMATS.items()]
    if as_json:
        console.json({"formats": [dict(zip(("name", "about", "can"), row, strict=True)) for row in found]})
    else:
        console.table(["format", "what it is", "here"], found)


CONVERT = """Write a trace in another format, or in blocks of another size.

\b
Examples:
  mooncake trace convert qwen_traceA_blksz_16.jsonl trace.jsonl --to-block-tokens 512
  mooncake trace convert s3://bucket/lookup_hashes_1.jsonl trace.jsonl --answer-tokens 300

What the other format cannot hold is lost, and said.
"""


@command.command("convert", help=CONVERT, short_help="Write a trace in another format.")
@click.argument("trace")
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@trace_options
@_TO
@click.option("--to-block-tokens", type=click.IntRange(1), help="Name blocks of so many tokens: a part or a multiple.")
@click.option("--limit", type=click.IntRange(1), help="Only so many requests from the beginning.")
@_FORCE
@json_option
def convert(
    trace: str,
    target: Path,
    to: str,
    to_block_tokens: int | None,
    limit: int | None,
    force: bool,
    as_json: bool,
    **reading: Any,
) -> int:
    import itertools

    requests: Iterable[TraceRequest] = itertools.islice(trace_source(trace, **reading).read(), limit)
    if to_block_tokens is not None:
        requests = _in_blocks(requests, to_block_tokens)
    return _write(target, requests, to, force, as_json)


GENERATE = """Make a trace by a seed.

\b
Examples:
  mooncake trace generate trace.jsonl --kind sessions --rate 2 --requests 5000
  mooncake trace generate long.jsonl --kind report --input-tokens 65536 --rate 0.1 --seed 7
  mooncake trace generate bursts.jsonl --kind families --arrivals bursty --burstiness 4 --skew 1

families: prompts that begin like others of their family. sessions: conversations, where a turn's prompt is all that was said
before and something new. report: the simulated data of Mooncake's technical report (prompts of 16384, 32768, 65536 or 131072
tokens, half of each shared; answers of 512).
"""


@command.command("generate", help=GENERATE, short_help="Make a trace by a seed.")
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--kind", type=click.Choice(["families", "sessions", "report"]), default="families", show_default=True)
@click.option("--requests", default=1000, show_default=True, type=click.IntRange(1), help="So many.")
@click.option("--arrivals", type=click.Choice(["poisson", "bursty"]), default="poisson", show_default=True)
@click.option("--rate", default=1.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Per second.")
@click.option(
    "--burstiness", type=click.FloatRange(0, min_open=True), help="Bursty: deviation of gaps over their mean."
)
@click.option("--input-tokens", type=click.IntRange(1), help="Of prompts; of sessions, new in each turn.")
@click.option("--output-tokens", type=click.IntRange(1), help="Of answers.")
@click.option("--spread", type=click.FloatRange(0, 2), help="Of lengths: deviation of their logarithms.")
@click.option("--shared", type=click.FloatRange(0, 1, max_open=True), help="families: share of a prompt.")
@click.option("--families", type=click.IntRange(1), help="families: how many.")
@click.option("--skew", type=click.FloatRange(0), help="families: exponent of Zipf's law; 0: all equally popular.")
@click.option("--turns", type=click.FloatRange(1), help="sessions: turns of one, in the mean.")
@click.option("--think", type=DURATION, help="sessions: from a turn's arrival to the next one's, in the mean.")
@click.option("--system-tokens", type=click.IntRange(0), help="sessions: that all begin with.")
@click.option("--to-block-tokens", default=512, show_default=True, type=click.IntRange(1), help="Tokens of a block.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@_TO
@_FORCE
@json_option
def generate(
    target: Path,
    kind: Literal["families", "sessions", "report"],
    requests: int,
    arrivals: Literal["poisson", "bursty"],
    rate: float,
    burstiness: float | None,
    to_block_tokens: int,
    seed: int,
    to: str,
    force: bool,
    as_json: bool,
    **shape: Any,
) -> int:
    from mooncake_core.errors import UsageError
    from mooncake_core.workload.generators import Arrivals, generate

    if burstiness is not None and arrivals != "bursty":
        raise UsageError("--burstiness needs --arrivals bursty")
    coming = Arrivals(kind=arrivals, rate=rate, burstiness=burstiness or Arrivals().burstiness)
    made = generate(_load(kind, shape), coming, requests=requests, block_tokens=to_block_tokens, seed=seed)
    return _write(target, made, to, force, as_json)


def _load(kind: str, shape: dict[str, Any]) -> Families | Sessions:
    """What the options say of prompts.

    Raises:
        UsageError: an option is none of this kind.
    """
    from mooncake_core.errors import UsageError
    from mooncake_core.workload.generators import REPORT_INPUTS, Families, Sessions, report

    given = {name: value for name, value in shape.items() if value is not None}
    accepted = {
        "families": ("input_tokens", "output_tokens", "spread", "shared", "families", "skew"),
        "sessions": ("input_tokens", "output_tokens", "spread", "turns", "think", "system_tokens"),
        "report": ("input_tokens",),
    }[kind]
    for name in given:
        if name not in accepted:
            takes = ", ".join("--" + option.replace("_", "-") for option in accepted)
            raise UsageError(f"--kind {kind} has no --{name.replace('_', '-')}; it takes {takes}")
    if kind == "families":
        return Families(**given)
    if kind == "report":
        tokens = given.get("input_tokens", REPORT_INPUTS[0])
        if tokens not in REPORT_INPUTS:
            raise UsageError(f"--kind report has prompts of {', '.join(map(str, REPORT_INPUTS))} tokens, got {tokens}")
        return report(tokens)
    renamed = {"input_tokens": "turn_tokens", "think": "think_s"}
    return Sessions(**{renamed.get(name, name): value for name, value in given.items()})


def _in_blocks(requests: Iterable[TraceRequest], block_tokens: int) -> Iterator[TraceRequest]:
    import msgspec

    from mooncake_core.workload.blocks import ids_in_blocks

    for request in requests:
        ids = ids_in_blocks(request, block_tokens)
        yield msgspec.structs.replace(request, block_ids=ids, block_tokens=block_tokens)


def _write(target: Path, requests: Iterable[TraceRequest], to: str, force: bool, as_json: bool) -> int:
    from mooncake_core.errors import UsageError
    from mooncake_core.workload.trace import named, write_trace

    if target.exists() and not force:
        raise UsageError(f"{target} exists already: choose another file, or --force")
    chosen = named(to)
    blocks = sessions = 0

    def watched() -> Iterator[TraceRequest]:
        nonlocal blocks, sessions
        for request in requests:
            blocks += len(request.block_ids)
            sessions += request.session is not None
            yield request

    count = write_trace(target, watched(), to)
    lost = []
    if blocks and not chosen.keeps_blocks:
        lost.append(f"the ids of {blocks:,} blocks")
    if sessions and not chosen.keeps_sessions:
        lost.append(f"the sessions of {sessions:,} requests")
    if as_json:
        console.json({"file": str(target), "format": to, "requests": count, "lost": lost})
    else:
        console.note(f"wrote {count:,} requests to {target} in format {to}")
        for what in lost:
            console.note(f"format {to} has no place for {what}: they are lost")
    return exits.DONE
