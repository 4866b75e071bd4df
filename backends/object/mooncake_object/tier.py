"""Files or objects as a tier: each write is one whole blob, and an index in memory says which there are."""

from __future__ import annotations

import errno
import logging
import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mooncake_core.errors import ConfigError, MooncakeError, PluginUnavailable
from mooncake_core.store.tiers.contract import (
    Listing,
    NewTierObject,
    Tier,
    TierKey,
    TierObject,
    TierSettings,
    TierUsage,
    Written,
)
from mooncake_core.store.tiers.trouble import Trouble
from mooncake_core.store.tiers.verified import copy_verified, key_digest
from mooncake_core.units import format_size
from mooncake_object.format import FOLDER, FORMAT, Name, name_of, pack_header, parse_name, unpack_header
from mooncake_object.places import BATCH_BYTES, Blob, Elsewhere, Folder, Place

MOST_HEADS: Final = 256
"""Read for one part of a list: whoever asks must not wait too long."""

_log = logging.getLogger(__name__)


class _Entry(NamedTuple):
    name: Name
    num_bytes: int
    """Header included."""


class _New(NamedTuple):
    about: TierObject
    blob: Blob

    @property
    def num_bytes(self) -> int:
        return len(self.blob.header) + self.about.size_bytes


class FsspecTier(Tier):
    """A folder named after the node, at any URL that fsspec knows. About 300 bytes of memory per object."""

    name: ClassVar[str] = "fsspec"

    def __init__(self, settings: TierSettings) -> None:
        self._capacity_bytes = settings.capacity_bytes
        self._reserve_bytes = settings.reserve_bytes
        self._where = f"{settings.path}/{settings.owner}"
        self._trouble = Trouble(self._where, retry_s=settings.retry_s, now=settings.now)
        self._lock = threading.Lock()
        """Of the index."""
        self._index: dict[bytes, _Entry] = {}
        """By the key's digest, the oldest first."""
        self._listing: list[bytes] = []
        """What was there when the latest listing began, in order."""
        self._used_bytes = 0
        self._next_number = 0
        self._place = _place(settings)
        with ExitStack() as opened:
            opened.callback(self._place.close)
            try:
                self._find()
            except (MooncakeError, OSError):
                raise
            except Exception as error:  # whatever a stranger's file system raises
                raise OSError(errno.EIO, f"{self._where} cannot be listed: {error}") from error
            opened.pop_all()

    def write(self, objects: Sequence[NewTierObject]) -> Written:
        written = Written([self.holds(item.about.name) for item in objects], [])
        for batch in self._batches(objects):
            if self._trouble.may_write() and self._store(list(batch.values()), written.dropped):
                for index in batch:
                    written.stored[index] = True
        return written

    def read(self, wanted: TierKey, target: memoryview) -> bool:
        entry = self._entry(wanted)
        if entry is None:
            return False
        try:
            content = memoryview(self._place.read(str(entry.name)))
        except FileNotFoundError:  # somebody else deleted it
            self._drop([entry.name])
            return False
        except Exception as error:  # whatever a stranger's file system raises
            _log.error("%s cannot be read from %s: %s", wanted.key, self._where, error)
            return False
        found = unpack_header(content)
        if found is not None and found[0].key == wanted.key:
            about, header_bytes = found
            if about.size_bytes != target.nbytes:
                return False
            if copy_verified(content[header_bytes:], target, about.checksum):
                return True
        _log.error("%s is damaged in %s: dropped", wanted.key, self._where)
        self.remove([wanted])
        return False

    def holds(self, name: TierKey) -> bool:
        return self._entry(name) is not None

    def remove(self, names: Sequence[TierKey]) -> None:
        self._drop([entry.name for name in names if (entry := self._entry(name)) is not None])

    def list_objects(self, cursor: str = "", limit: int = 1024) -> Listing:
        limit = min(limit, MOST_HEADS)
        with self._lock:
            if not cursor:
                self._listing = sorted(self._index)
            start = bisect_left(self._listing, bytes.fromhex(cursor))
            part = self._listing[start : start + limit + 1]
            names = [self._index[digest].name for digest in part[:limit] if digest in self._index]
        return Listing(self._read_heads(names), part[limit].hex() if len(part) > limit else None)

    def usage(self) -> TierUsage:
        with self._lock:
            return TierUsage(
                capacity_bytes=self._capacity_bytes,
                used_bytes=self._used_bytes,
                num_objects=len(self._index),
                trouble=self._trouble.message,
            )

    def sync(self) -> None:
        try:
            self._place.sync()
        except OSError as error:
            self._trouble.failed(error)

    def close(self) -> None:
        self._place.close()

    def _find(self) -> None:
        """The index, from the names of what is there."""
        others = [name for name in self._place.formats() if name.startswith("v") and name != FOLDER]
        if others:
            raise ConfigError(
                f"expected format {FORMAT} in {self._where}, found {', '.join(others)}, which another version of mooncake "
                "wrote: run that version, or delete it (it is a cache) or give another path"
            )
        names = ((parse_name(found.name), found.num_bytes) for found in self._place.find())
        entries = [_Entry(name, num_bytes) for name, num_bytes in names if name is not None]
        older = []  # left by a process that was killed when the newer one was written
        for entry in sorted(entries, key=lambda entry: entry.name.number):
            if (other := self._index.pop(entry.name.digest, None)) is not None:
                older.append(other.name)
            self._index[entry.name.digest] = entry
            self._next_number = entry.name.number + 1
        self._used_bytes = sum(entry.num_bytes for entry in self._index.values())
        self._forget(older)

    def _entry(self, name: TierKey) -> _Entry | None:
        with self._lock:
            entry = self._index.get(key_digest(name.key))
        return entry if entry is not None and entry.name.allocation_id == name.allocation_id else None

    def _batches(self, objects: Sequence[NewTierObject]) -> Iterator[dict[int, _New]]:
        """What is written at once, by its number: of each key one object, and none that is there or too large."""
        batch: dict[int, _New] = {}
        digests: set[bytes] = set()
        for index, item in enumerate(objects):
            new = _New(item.about, Blob(pack_header(item.about), item.data))
            digest = key_digest(item.about.key)
            if digest in digests or sum(other.num_bytes for other in batch.values()) + new.num_bytes > BATCH_BYTES:
                if batch:
                    yield batch
                batch, digests = {}, set()
            if new.num_bytes <= self._capacity_bytes and self._is_newer(digest, item.about.allocation_id):
                batch[index] = new
                digests.add(digest)
        if batch:
            yield batch

    def _is_newer(self, digest: bytes, allocation_id: int) -> bool:
        with self._lock:
            entry = self._index.get(digest)
        return entry is None or entry.name.allocation_id < allocation_id

    def _store(self, batch: Sequence[_New], dropped: list[TierKey]) -> bool:
        named = {name_of(new.about, self._next_number + number): new for number, new in enumerate(batch)}
        self._next_number += len(batch)
        try:
            if not self._make_room(sum(new.num_bytes for new in batch), dropped):
                return False
            self._place.write({str(name): new.blob for name, new in named.items()})
        except Exception as error:  # whatever a stranger's file system raises
            self._trouble.failed(error)
            self._forget(list(named))
            return False
        replaced = []
        with self._lock:
            for name, new in named.items():
                if (old := self._pop(name.digest)) is not None:
                    dropped.append(TierKey(new.about.key, old.allocation_id))
                    replaced.append(old)
                self._index[name.digest] = _Entry(name, new.num_bytes)
                self._used_bytes += new.num_bytes
        self._forget(replaced)
        self._trouble.ended()
        return True

    def _make_room(self, num_bytes: int, dropped: list[TierKey]) -> bool:
        """Drops the oldest objects until so much more fits; whether it ever does."""
        free = max(0, self._place.free_bytes() - self._reserve_bytes)
        with self._lock:
            room = min(self._capacity_bytes, self._used_bytes + free) - num_bytes
            leaving = []
            surplus = self._used_bytes - room
            for entry in self._index.values() if room >= 0 else ():
                if surplus <= 0:
                    break
                leaving.append(entry.name)
                surplus -= entry.num_bytes
        if room < 0:
            self._trouble.refuse(
                f"the disk of {self._where} has {format_size(self._place.free_bytes())} free, of which "
                f"{format_size(self._reserve_bytes)} are left to others: free space, or lower the tier's capacity or reserve"
            )
            return False
        dropped += [about.name for about in self._read_heads(leaving)]
        self._drop(leaving)
        return True

    def _read_heads(self, names: Sequence[Name]) -> list[TierObject]:
        heads = self._place.heads([str(name) for name in names]) if names else []
        return [found[0] for head in heads if head is not None and (found := unpack_header(head)) is not None]

    def _drop(self, names: Sequence[Name]) -> None:
        with self._lock:
            for name in names:
                self._pop(name.digest)
        self._forget(names)

    def _pop(self, digest: bytes) -> Name | None:
        """Takes an object out of the index."""
        entry = self._index.pop(digest, None)
        if entry is None:
            return None
        self._used_bytes -= entry.num_bytes
        return entry.name

    def _forget(self, names: Sequence[Name]) -> None:
        """Deletes what the index no more names; what cannot be deleted now is found again at the next start."""
        try:
            if names:
                self._place.delete([str(name) for name in names])
        except Exception as error:  # whatever a stranger's file system raises
            self._trouble.failed(error)


def _place(settings: TierSettings) -> Place:
    if not settings.path:
        raise ConfigError("expected a URL as the path of tier fsspec, such as s3://bucket/prefix or file:///mnt/cache")
    try:
        filesystem, root = fsspec.core.url_to_fs(settings.path, **settings.options)
    except ImportError as error:
        raise PluginUnavailable(f"tier fsspec cannot reach {settings.path}: {error}") from error
    except ValueError as error:
        raise ConfigError(
            f"expected a URL that fsspec knows as the path of tier fsspec, got {settings.path}: {error}"
        ) from error
    if isinstance(filesystem, LocalFileSystem):
        return Folder(Path(root), settings.owner)
    return Elsewhere(filesystem, root, settings.owner)
