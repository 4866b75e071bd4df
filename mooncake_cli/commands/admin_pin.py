"""mooncake admin pin, mooncake admin unpin."""

from __future__ import annotations

from typing import Any

import click

from mooncake_cli import console, exits
from mooncake_cli.options import ask, cluster_options, json_option, tenant_option
from mooncake_cli.quantities import DURATION


@click.command("pin", help="Keep objects from eviction: for ever, or softly for a time.")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.option(
    "--for", "soft_s", default=None, type=DURATION, help="Softly, for so long: evicted only where nothing else can go."
)
@tenant_option
@cluster_options
@json_option
def pin(keys: tuple[str, ...], soft_s: float | None, tenant: str, as_json: bool, **where: Any) -> int:
    return _set(keys, hard=soft_s is None, soft_s=soft_s or 0.0, tenant=tenant, as_json=as_json, where=where)


@click.command("unpin", help="Let objects be evicted again.")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@tenant_option
@cluster_options
@json_option
def unpin(keys: tuple[str, ...], tenant: str, as_json: bool, **where: Any) -> int:
    return _set(keys, hard=False, soft_s=0.0, tenant=tenant, as_json=as_json, where=where)


def _set(keys: tuple[str, ...], *, hard: bool, soft_s: float, tenant: str, as_json: bool, where: dict[str, Any]) -> int:
    """Gives objects this pin; one line for each that is not there."""
    from mooncake_core.wire.messages.objects import Pin, Pinned

    refusals = ask(Pin(keys=list(keys), hard=hard, soft_s=soft_s, tenant=tenant), Pinned, **where).refusals
    done = [key for key, refusal in zip(keys, refusals, strict=True) if not refusal]
    if as_json:
        console.json({"objects": [{"key": key, "refusal": code} for key, code in zip(keys, refusals, strict=True)]})
    else:
        console.data(f"{len(done)} objects {'pinned' if hard or soft_s else 'unpinned'}")
    for key, refusal in zip(keys, refusals, strict=True):
        if refusal:
            console.error(f"{key}: {refusal}")
    return exits.DONE if len(done) == len(keys) else exits.FAILED
