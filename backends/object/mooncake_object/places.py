"""Where objects lie: a folder of this machine, or anything else that fsspec reaches."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from mooncake_core.store.tiers.folder import OwnFolder
from mooncake_object.format import FOLDER, HEAD_BYTES

BATCH_BYTES: Final = 32 << 20
"""So much is on its way at once."""
UNLIMITED: Final = 1 << 62
WRITTEN: Final = ".new"
"""Ends the name of a file that is being written."""


class Found(NamedTuple):
    """A file or object."""

    name: str
    num_bytes: int


class Blob(NamedTuple):
    """Header and data of an object."""

    header: bytes
    data: memoryview


class Place(ABC):
    """Named blobs, written whole or not at all. Errors are those of the file system behind it, and OSError."""

    @abstractmethod
    def formats(self) -> list[str]:
        """Folders of this and other formats."""

    @abstractmethod
    def find(self) -> Iterator[Found]:
        """All that is there."""

    @abstractmethod
    def write(self, blobs: Mapping[str, Blob]) -> None:
        """Writes all; after an error some may be there."""

    @abstractmethod
    def heads(self, names: Sequence[str]) -> list[bytes | None]:
        """The first HEAD_BYTES of each, or None."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All of a blob."""

    @abstractmethod
    def delete(self, names: Sequence[str]) -> None:
        """Those that are there."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Space behind it, as far as that has an end."""

    @abstractmethod
    def sync(self) -> None:
        """What was written survives a power cut."""

    @abstractmethod
    def close(self) -> None:
        """Idempotent."""


class Folder(Place):
    """Of this machine: files are written beside, and renamed."""

    def __init__(self, path: Path, owner: str) -> None:
        self._own = OwnFolder(path / owner, owner)
        self._root = self._own.path / FOLDER
        self._unsynced: set[Path] = set()

    def formats(self) -> list[str]:
        return [path.name for path in self._own.path.iterdir() if path.is_dir()]

    def find(self) -> Iterator[Found]:
        for folder, _, files in os.walk(self._root):
            for file in files:
                path = Path(folder, file)
                if file.endswith(WRITTEN):
                    path.unlink()  # whoever wrote it was killed
                else:
                    yield Found(str(path.relative_to(self._root)), path.stat().st_size)

    def write(self, blobs: Mapping[str, Blob]) -> None:
        for name, blob in blobs.items():
            path = self._root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            written = path.with_name(path.name + WRITTEN)
            try:
                with open(written, "wb", buffering=0) as file:
                    _write_all(file.fileno(), blob)
                written.rename(path)
            except BaseException:
                written.unlink(missing_ok=True)
                raise
            self._unsynced |= {path, path.parent}

    def heads(self, names: Sequence[str]) -> list[bytes | None]:
        return [self._head(name) for name in names]

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            (self._root / name).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        return self._own.free_bytes()

    def sync(self) -> None:
        unsynced, self._unsynced = self._unsynced, set()
        for path in unsynced:
            if path.exists():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def close(self) -> None:
        self._own.close()

    def _head(self, name: str) -> bytes | None:
        try:
            with open(self._root / name, "rb", buffering=0) as file:
                return file.read(HEAD_BYTES)
        except OSError:
            return None


class Elsewhere(Place):
    """Behind fsspec: one request writes an object."""

    def __init__(self, filesystem: Any, root: str, owner: str) -> None:
        self._filesystem = filesystem
        self._base = f"{root.rstrip('/')}/{owner}"
        self._root = f"{self._base}/{FOLDER}"

    def formats(self) -> list[str]:
        self._filesystem.invalidate_cache()
        try:
            return [path.rstrip("/").rpartition("/")[2] for path in self._filesystem.ls(self._base, detail=False)]
        except FileNotFoundError:
            return []

    def find(self) -> Iterator[Found]:
        try:
            found = self._filesystem.find(self._root, detail=True)
        except FileNotFoundError:
            return
        for path, info in found.items():
            yield Found(path[path.index(f"/{FOLDER}/") + len(FOLDER) + 2 :], info["size"])

    def write(self, blobs: Mapping[str, Blob]) -> None:
        self._filesystem.pipe({f"{self._root}/{name}": b"".join(blob) for name, blob in blobs.items()})

    def heads(self, names: Sequence[str]) -> list[bytes | None]:
        paths = [f"{self._root}/{name}" for name in names]
        found = self._filesystem.cat_ranges(paths, 0, HEAD_BYTES, on_error="return")
        return [head if isinstance(head, bytes) else None for head in found]

    def read(self, name: str) -> bytes:
        content: bytes = self._filesystem.cat_file(f"{self._root}/{name}")
        return content

    def delete(self, names: Sequence[str]) -> None:
        paths = [f"{self._root}/{name}" for name in names]
        try:
            self._filesystem.rm(paths)
        except FileNotFoundError:
            for path in paths:
                if self._filesystem.exists(path):
                    self._filesystem.rm(path)

    def free_bytes(self) -> int:
        return UNLIMITED

    def sync(self) -> None:
        """An object store has it when it has answered."""

    def close(self) -> None:
        """Nothing is held."""


def _write_all(descriptor: int, blob: Blob) -> None:
    for piece in (memoryview(blob.header), blob.data.cast("B")):
        while piece:
            piece = piece[os.write(descriptor, piece) :]
