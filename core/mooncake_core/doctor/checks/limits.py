"""Limits of the kernel for a process of ours."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import Final

from mooncake_core.doctor.contract import Finding, Subject, ok, warn

FEWEST_FILES: Final = 4096
"""A master holds a socket or two per member and client; a gateway one per request."""


def check(subject: Subject) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FEWEST_FILES:
        yield warn(
            f"a process may have {soft} open files; expected {FEWEST_FILES} for some hundred clients",
            f"ulimit -n {FEWEST_FILES}"
            if hard == resource.RLIM_INFINITY or hard >= FEWEST_FILES
            else "raise the hard limit",
        )
    else:
        yield ok(f"a process may have {soft if soft != resource.RLIM_INFINITY else 'any number of'} open files")
