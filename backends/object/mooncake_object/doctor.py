"""Whether the places of tiers `fsspec` answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from mooncake_core.config.schema import TierConfig
from mooncake_core.doctor import Finding, Subject, fail, ok, skip
from mooncake_core.doctor.places import tiers_here

PATIENCE_S: Final = 10.0


def check(subject: Subject) -> Iterator[Finding]:
    tiers = list(tiers_here(subject.config, "fsspec")) if subject.config else []
    if not tiers:
        yield skip(
            "no node for this machine has a tier fsspec" if subject.config else "give -c FILE to look at its tiers"
        )
    for setting, _, tier in tiers:
        yield _finding(f"{setting}: {tier.path}", tier)


def _finding(place: str, tier: TierConfig) -> Finding:
    waiting = ThreadPoolExecutor(1)
    try:
        num_entries = waiting.submit(_list, tier.path, tier.options).result(PATIENCE_S)
    except TimeoutError:
        return fail(f"{place} did not answer within {PATIENCE_S:g}s", "look at the address, the network, the proxy")
    except Exception as error:  # whatever a stranger's file system raises
        return fail(
            f"{place} cannot be listed: {type(error).__name__}: {error}", "look at the address and the credentials"
        )
    finally:
        waiting.shutdown(wait=False, cancel_futures=True)
    return ok(f"{place} answers, {num_entries} entries")


def _list(url: str, options: dict[str, Any]) -> int:
    import fsspec

    system, path = fsspec.core.url_to_fs(url, **options)
    return len(system.ls(path, detail=False)) if system.exists(path) else 0
