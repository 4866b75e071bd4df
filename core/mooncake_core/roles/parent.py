"""What a child process shares with the supervisor that started it.

stdin: one line, the Boot message; then silence until the supervisor ends, which the child notices as end of file.
stdout: Announcements, one per line. stderr: logs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

import msgspec
from msgspec import Struct

from mooncake_core.config.schema import ClusterConfig

GRACE_S = 3.0


class Boot(Struct, frozen=True, kw_only=True):
    """All that a child needs to know."""

    config: ClusterConfig
    process: str
    """Which process of the configuration it is; it may be that of several members."""
    master_address: str
    log_level: str
    cluster: str = ""
    """Whose master that is; empty where whoever starts the child does not know."""


class Announcement(Struct, frozen=True, kw_only=True):
    """A member is ready, and this is where it can be reached: tcp:// for control, http:// for the gateway."""

    name: str
    address: str
    admin_url: str = ""
    """Of the HTTP port for operators, where the member has one."""
    metrics_url: str = ""
    """Of the HTTP port for Prometheus, where it has another one for that."""


def read_boot() -> Boot:
    """The Boot message of this process."""
    return msgspec.json.decode(_read_line(sys.stdin.fileno()), type=Boot)


def announce(name: str, address: str, *, admin_url: str = "", metrics_url: str = "") -> None:
    """Tells the supervisor that a member is ready."""
    announcement = Announcement(name=name, address=address, admin_url=admin_url, metrics_url=metrics_url)
    os.write(sys.stdout.fileno(), msgspec.json.encode(announcement) + b"\n")


def end_with_parent() -> None:
    """Ends this process when the supervisor is gone: politely by SIGTERM, and for good GRACE_S later."""
    threading.Thread(target=_wait_for_end, args=(sys.stdin.fileno(),), name="parent-watch", daemon=True).start()


def _read_line(fd: int) -> bytes:
    # Unbuffered: what follows the line is the end of the parent, and must not be swallowed.
    parts: list[bytes] = []
    while not (parts and parts[-1].endswith(b"\n")):
        part = os.read(fd, 1 << 16)
        if not part:
            raise EOFError("the supervisor ended before it said what to do")
        parts.append(part)
    return b"".join(parts)


def _wait_for_end(fd: int) -> None:
    while os.read(fd, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_S)
    os._exit(1)
