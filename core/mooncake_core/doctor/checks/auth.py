"""Whether the cluster key is there, and its owner's alone: without it no process starts."""

from __future__ import annotations

from collections.abc import Iterator

from mooncake_core.doctor.contract import Finding, Subject, fail, found_and_fix, ok, skip
from mooncake_core.errors import ConfigError
from mooncake_core.roles.context import load_key


def check(subject: Subject) -> Iterator[Finding]:
    if subject.config is None:
        yield skip("give -c FILE to look at the key that its auth.key_file names")
        return
    if subject.config.auth is None:
        yield skip("auth is not set: whoever reaches the cluster's ports belongs to it")
        return
    key_file = subject.config.auth.key_file
    try:
        load_key(key_file)
    except ConfigError as error:
        found, fix = found_and_fix(error)
        yield fail(f"auth.key_file: {found}", fix or "see the message")
    else:
        yield ok(f"auth.key_file: {key_file or '$MOONCAKE_KEY_FILE'} has a cluster key, which only its owner can read")
