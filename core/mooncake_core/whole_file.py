"""Files that have all of what was to be in them, or are as they were: a full disk leaves no half of one behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write(path: Path, data: bytes, *, mode: int = 0o666, anew: bool = False) -> None:
    """Writes a file, of which readers see all or what was there before; `anew` never over one that exists.

    Raises:
        FileExistsError: there is one.
        OSError: it cannot be written; names the file.
    """
    try:
        if anew or (path.exists() and not path.is_file()):  # a device, or a pipe
            _write(path, data, mode, anew=anew)
        else:
            _replace(path.resolve(), data, mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, data: bytes, mode: int) -> None:
    draft = path.with_name(f".{path.name}.unfinished")
    _write(draft, data, mode, anew=False)
    if path.exists():
        shutil.copymode(path, draft)
    draft.replace(path)


def _write(path: Path, data: bytes, mode: int, *, anew: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_EXCL if anew else os.O_TRUNC), mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
    except OSError:
        if path.is_file():
            path.unlink()
        raise
