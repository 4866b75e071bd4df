"""The lines of a trace: of a file, a folder of logs, or anything that fsspec reaches; compressed ones too."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from mooncake_core.errors import PluginUnavailable, UsageError

_OPENERS: Final[dict[str, Callable[[Path], Any]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
LOGS: Final = "lookup_hashes_*.jsonl*"
"""What LMCache calls the files of its lookup log, in the order of their times."""


class Line(NamedTuple):
    """With its place, for what is to be said of it."""

    file: str
    number: int
    text: bytes


def read_lines(source: str) -> Iterator[Line]:
    """Those that are not empty. `source` is a path, a folder of an LMCache lookup log, or a URL such as s3://bucket/trace.jsonl.

    Raises:
        UsageError: it cannot be read.
        PluginUnavailable: a URL needs fsspec, or what fsspec needs for it, and that is not installed.
    """
    for file in _files(source):
        with _reading(file) as stream:
            for number, text in enumerate(stream, 1):
                if stripped := text.strip():
                    yield Line(file, number, stripped)


def is_url(source: str) -> bool:
    """Whether it is fsspec's to read."""
    return "://" in source or "::" in source


def _files(source: str) -> list[str]:
    path = Path(source)
    if is_url(source) or not path.is_dir():
        return [source]
    found = sorted(str(file) for file in path.glob(LOGS))
    if not found:
        raise UsageError(f"{source}: expected a file, or a folder with an LMCache lookup log ({LOGS}); found neither")
    return found


@contextmanager
def _reading(file: str) -> Iterator[IO[bytes]]:
    """What goes wrong while it is read as well."""
    try:
        with _opened(file) as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise UsageError(f"{file}: cannot be decompressed: {error}") from error
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror or error}") from error


def _opened(file: str) -> Any:
    if is_url(file):
        return _opened_by_fsspec(file)
    path = Path(file)
    opener = _OPENERS.get(path.suffix)
    return opener(path) if opener else path.open("rb")


def _opened_by_fsspec(url: str) -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise PluginUnavailable(
            f"{url} cannot be read: fsspec is not installed; pip install 'mooncake-toolkit[object]' (s3: [s3]), or name a "
            "local file"
        ) from error
    try:
        return fsspec.open(url, "rb", compression="infer").open()
    except ImportError as error:
        raise PluginUnavailable(f"{url} cannot be read: {error}") from error
    except ValueError as error:
        raise UsageError(f"{url}: expected a URL that fsspec knows: {error}") from error
    except OSError:
        raise
    except Exception as error:  # each of fsspec's libraries has errors of its own
        raise UsageError(f"{url}: cannot be read: {type(error).__name__}: {error}") from error
