"""A tier's own folder on a disk: one process at a time, and space that is left to others."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from mooncake_core.errors import ConfigError


class FolderBusy(ConfigError):
    """Another process has the folder open."""


class OwnFolder:
    """A folder that no other process uses as long as this one holds it; a killed process lets go of it."""

    def __init__(self, path: Path, owner: str) -> None:
        """Makes the folder where there is none.

        Raises:
            FolderBusy: another process holds it; says which.
            OSError: it cannot be made or written to.
        """
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        lock = path / "owner.lock"
        self._descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise FolderBusy(
                f"expected {path} to be used by {owner} alone, but {holder or 'another process'} has it open: "
                "stop that one, or give this node another path"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{owner} (process {os.getpid()})\n".encode(), 0)

    def free_bytes(self) -> int:
        """Space on its disk that an ordinary user can still take."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def close(self) -> None:
        """Lets others use it. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
