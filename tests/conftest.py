"""How hypothesis runs: without deadlines, since machines are shared; always the same examples where CI says so. And what a
shell leaves to its background jobs is undone."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # under `nohup scripts/test &`; many tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
