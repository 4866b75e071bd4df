"""mooncake admin evict."""

from __future__ import annotations

from typing import Any

import click

from mooncake_cli import console, exits
from mooncake_cli.options import ask, cluster_options, json_option
from mooncake_cli.quantities import SIZE


@click.command(
    "evict", help="Evict objects of a node, in the order of its policy; those that are read, copied or pinned stay."
)
@click.argument("node")
@click.option("--size", default=None, type=SIZE, help="So much; everything that may go by default.")
@cluster_options
@json_option
def command(node: str, size: int | None, as_json: bool, **where: Any) -> int:
    from mooncake_core.units import format_size
    from mooncake_core.wire.messages.tasks import Evicted, EvictObjects

    objects = size_bytes = 0
    more = True
    while more:
        left = 0 if size is None else max(1, size - size_bytes)
        evicted = ask(EvictObjects(node=node, size_bytes=left), Evicted, **where)
        objects, size_bytes, more = objects + evicted.objects, size_bytes + evicted.size_bytes, evicted.more
    if as_json:
        console.json({"node": node, "objects": objects, "size_bytes": size_bytes})
    else:
        console.data(f"evicted {objects} objects, {format_size(size_bytes)}, from {node}")
    return exits.DONE if size is None or size_bytes >= size else exits.FAILED
