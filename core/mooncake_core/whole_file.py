"""Files that have all of what was to be in them, or are as they were: a full disk leaves no half of one behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write(path: Path, data: bytes, *, mode: int = 0o666, anew: bool = False) -> None:
    """Writes a file; `anew` never over one that exists.

    Raises:
        FileExistsError: there is one.
        OSError: it cannot be written; names the file.
    """
    if anew or not path.is_file():  # no file may also be a device, or a pipe
        _write(path, data, mode, anew=anew, named=path)
        return
    existing = path.resolve()
    draft = existing.with_name(f".{existing.name}.unfinished")
    _write(draft, data, mode, anew=False, named=path)
    shutil.copymode(existing, draft)
    draft.replace(existing)


def _write(path: Path, data: bytes, mode: int, *, anew: bool, named: Path) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_EXCL if anew else os.O_TRUNC), mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(named)) from error
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
    except OSError as error:
        if path.is_file():
            path.unlink()
        raise OSError(error.errno, error.strerror, str(named)) from error
