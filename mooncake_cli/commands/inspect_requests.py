"""mooncake inspect requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mooncake_cli import console, exits
from mooncake_cli.options import ask, cluster_options, json_option
from mooncake_cli.request_ids import bare, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mooncake_core.telemetry.spans import Span
    from mooncake_core.wire.messages.timeline import RequestSummary, SpansOf


ALL_KEPT: Final = 1 << 31
"""More than any gateway keeps."""


@click.command(
    "requests",
    help="The latest requests, or where the time of one went, named by its id or the beginning of it.",
)
@click.argument("request_id", required=False)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="So many requests.")
@click.option("--every", is_flag=True, help="Of one request: every span, not one line per kind.")
@click.option(
    "--chrome-trace",
    "trace_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a timeline that trace viewers open (chrome://tracing, Perfetto). Default: of the latest request.",
)
@cluster_options
@json_option
def command(
    request_id: str | None, limit: int, every: bool, trace_path: Path | None, as_json: bool, **where: Any
) -> int:
    from mooncake_core.telemetry.spans import MAX_SPANS
    from mooncake_core.wire.messages.timeline import GetSpans, ListRequests, Requests, SpansOf

    if request_id is None:
        found = ask(ListRequests(limit=limit), Requests, **where).requests
        if trace_path is None:
            _print_requests(found, as_json)
            return exits.DONE
        if not found:
            console.error("no request has come yet", "send one: mooncake complete 'In the beginning'")
            return exits.FAILED
        request_id = found[0].request_id
    else:
        known = (request.request_id for request in ask(ListRequests(limit=ALL_KEPT), Requests, **where).requests)
        request_id = bare(request_id)
        request_id = resolve(request_id, known) or request_id  # others may know what its gateway has forgotten
    timeline = ask(GetSpans(request_id=request_id), SpansOf, **where)
    if not timeline.spans:
        console.error(
            f"nobody knows a request {request_id}",
            "`mooncake inspect requests` lists the latest; an answer's id is in its body, and in its x-request-id header",
        )
        return exits.FAILED
    if timeline.silent:
        console.note(f"no answer from {', '.join(timeline.silent)}: their part is missing")
    if timeline.dropped:
        console.note(f"{timeline.dropped} more spans were dropped: a process keeps {MAX_SPANS} of a request")
    if trace_path is not None:
        return _write_trace(timeline.spans, trace_path)
    _print_timeline(request_id, timeline, as_json, every=every)
    return exits.DONE


def _write_trace(spans: Sequence[Span], path: Path) -> int:
    import json

    from mooncake_core.telemetry.chrome_trace import chrome_trace

    try:
        path.write_text(json.dumps(chrome_trace(spans)))
    except OSError as error:
        console.error(f"cannot write {path}: {error.strerror}")
        return exits.FAILED
    console.note(f"{len(spans)} spans written to {path}")
    return exits.DONE


def _print_requests(found: Sequence[RequestSummary], as_json: bool) -> None:
    if as_json:
        import msgspec

        console.json({"requests": msgspec.to_builtins(found)})
        return
    from mooncake_core.units import format_duration

    rows = [
        [
            request.request_id,
            format_duration(request.age_s),
            request.outcome,
            request.prompt_tokens,
            request.cached_tokens,
            request.output_tokens,
            request.attempts,
            "-" if request.ttft_s is None else format_duration(request.ttft_s),
            format_duration(request.total_s),
            "-" if request.exposed_s is None else format_duration(request.exposed_s),
        ]
        for request in found
    ]
    columns = ["request", "age", "outcome", "prompt", "cached", "output", "attempts", "ttft", "total", "exposed"]
    console.table(columns, rows)


def _print_timeline(request_id: str, timeline: SpansOf, as_json: bool, *, every: bool) -> None:
    if as_json:
        import msgspec

        spans = [
            dict(
                zip(("process", "name", "start_s", "duration_s", "attributes"), msgspec.to_builtins(span), strict=True)
            )
            for span in timeline.spans
        ]
        console.json({"request": request_id, "spans": spans, "silent": timeline.silent, "dropped": timeline.dropped})
        return
    from mooncake_core.units import format_duration

    origin_s = timeline.spans[0].start_s
    groups: dict[tuple[str, str, int], list[Span]] = {}
    for number, span in enumerate(timeline.spans):
        groups.setdefault((span.process, span.name, number if every else 0), []).append(span)
    rows = [
        [
            f"+{format_duration(min(span.start_s for span in spans) - origin_s)}",
            f"+{format_duration(max(span.start_s + span.duration_s for span in spans) - origin_s)}",
            process,
            name,
            len(spans),
            format_duration(sum(span.duration_s for span in spans)),
            _details(spans),
        ]
        for (process, name, _), spans in groups.items()
    ]
    console.table(["from", "to", "process", "what", "times", "took", "details"], rows)


def _details(spans: Sequence[Span]) -> str:
    """Numbers added up where there are several spans, texts as they are."""
    from mooncake_core.units import format_size

    found: dict[str, str | float] = {}
    for span in spans:
        for name, value in span.attributes.items():
            before = found.get(name)
            added = isinstance(value, float | int) and isinstance(before, float | int) and name in ("bytes", "tokens")
            found[name] = before + value if added else value  # type: ignore[operator]
    several = len(spans) > 1
    shown = {
        name: value for name, value in found.items() if not (several and name in ("start", "layer", "first_layer"))
    }
    return " ".join(f"{name}={format_size(int(value)) if name == 'bytes' else value}" for name, value in shown.items())
