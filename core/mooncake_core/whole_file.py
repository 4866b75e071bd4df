"""Files that have all of what was to be in them, or are not there: a full disk leaves no half of one behind."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, data: bytes, *, mode: int = 0o666, anew: bool = False) -> None:
    """Writes a file; `anew` never over one that exists.

    Raises:
        FileExistsError: there is one.
        OSError: it cannot be written; names the file.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_EXCL if anew else os.O_TRUNC), mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
    except OSError as error:
        if path.is_file():  # not a device or a pipe
            path.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error
