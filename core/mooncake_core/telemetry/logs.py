"""One line per event on stderr: time, level, logger, message. The supervisor puts the process's name in front."""

from __future__ import annotations

import logging
import sys
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error")


def configure(level: str = "info") -> None:
    """Sets the process's logging up; call once, at start."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper() if level.lower() in LEVELS else "INFO")
    logging.getLogger("mooncake_core").setLevel(root.level)
    for chatty in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
