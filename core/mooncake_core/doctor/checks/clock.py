"""Whether something keeps this machine's clock right: timelines of several hosts are laid side by side."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Final

from mooncake_core.doctor.contract import Finding, Subject, ok, skip, warn

NOT_SYNCHRONIZED: Final = 5  # TIME_ERROR, what adjtimex answers then
TIMEX_BYTES: Final = 256
"""More than a struct timex has; all zero, it asks and changes nothing."""


def check(subject: Subject) -> Iterator[Finding]:
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except AttributeError:
        yield skip("this system has no adjtimex to ask")
        return
    state = adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    if state < 0:
        yield skip("the kernel does not say, to us, whether the clock is synchronized")
    elif state == NOT_SYNCHRONIZED:
        yield warn(
            "the kernel takes the clock for not synchronized; times of several hosts may not fit together",
            "run chrony or systemd-timesyncd (timedatectl set-ntp true); in a container, on its host",
        )
    else:
        yield ok("the clock is synchronized")
