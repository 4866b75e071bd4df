"""A folder on a local SSD as a tier; what is durable when is in docs/decisions/0021.

The data file is written round and round, so that the oldest objects make room. What is about to be written over is dropped from
the index first, and what was written is on the disk before the index names it.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Final

import lmdb

from mooncake_core.errors import ConfigError
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
from mooncake_core.store.tiers.folder import OwnFolder
from mooncake_core.store.tiers.trouble import Trouble
from mooncake_core.units import format_size
from mooncake_nvme.data_file import DataFile, places, runs
from mooncake_nvme.tables import NUM_TABLES, Record, Tables, Totals, row_bytes, space_bytes

SMALLEST_BYTES: Final = 8 << 20
SMALLEST_INDEX_BYTES: Final = 4 << 20
INDEX_SHARE: Final = 16
"""The index takes at most one part in so many."""
LARGEST_BATCH_BYTES: Final = 32 << 20
BATCHES_PER_FILE: Final = 32
INDEX_FILL: Final = 2
"""The index is full at one part in so many: a transaction writes the pages that it changes beside the old ones."""
OBJECTS_PER_INDEX_MIB: Final = 16
"""In one batch, for the same reason."""
NOTHING: Final = memoryview(b"\0")
"""In the place of an empty object."""

_log = logging.getLogger(__name__)


class LmdbTier(Tier):
    """Two files of `capacity_bytes` together at most, in a folder named after the node."""

    name: ClassVar[str] = "lmdb"

    def __init__(self, settings: TierSettings) -> None:
        self._capacity_bytes = _checked_capacity(settings)
        index_bytes = max(SMALLEST_INDEX_BYTES, self._capacity_bytes // INDEX_SHARE)
        self._data_bytes = self._capacity_bytes - index_bytes
        self._batch_bytes = min(LARGEST_BATCH_BYTES, self._data_bytes // BATCHES_PER_FILE)
        self._batch_objects = (index_bytes >> 20) * OBJECTS_PER_INDEX_MIB
        self._most_index_bytes = index_bytes // INDEX_FILL
        self._reserve_bytes = settings.reserve_bytes
        self._folder = OwnFolder(Path(settings.path).expanduser() / settings.owner, settings.owner)
        self._where = self._folder.path
        self._trouble = Trouble(str(self._where), retry_s=settings.retry_s, now=settings.now)
        with ExitStack() as opened:
            opened.callback(self._folder.close)
            self._environment = _open(self._where, index_bytes)
            opened.callback(self._environment.close)
            self._data = DataFile(self._where / "objects.data")
            opened.callback(self._data.close)
            self._tables = Tables(self._environment, str(self._where))
            self._head = self._fit()
            self._opened = opened.pop_all()

    def write(self, objects: Sequence[NewTierObject]) -> Written:
        written = Written([False] * len(objects), [])
        for batch in self._batches(objects):
            if not self._trouble.may_write() or not self._write_batch(objects, batch, written):
                for index in batch:  # it may be there from before
                    written.stored[index] = self.holds(objects[index].about.name)
        return written

    def read(self, wanted: TierKey, target: memoryview) -> bool:
        record = self._find(wanted)
        if record is None or record.size_bytes != target.nbytes:
            return False
        try:
            if self._data.read(record.offset, target, record.checksum):
                return True
        except OSError as error:
            _log.error("%s cannot be read from %s: %s", wanted.key, self._where, error)
            return False
        if self._find(wanted) == record:  # it was not just written over
            _log.error("%s is damaged in %s: dropped", wanted.key, self._where)
            self.remove([wanted])
        return False

    def holds(self, name: TierKey) -> bool:
        return self._find(name) is not None

    def remove(self, names: Sequence[TierKey]) -> None:
        records = [record for name in names if (record := self._find(name)) is not None]
        try:
            self._drop(records)
        except lmdb.Error as error:
            self._trouble.failed(error)

    def list_objects(self, cursor: str = "", limit: int = 1024) -> Listing:
        objects: list[TierObject] = []
        try:
            with self._environment.begin() as txn:
                for digest, record in self._tables.records(txn, bytes.fromhex(cursor)):
                    if len(objects) == limit:
                        return Listing(objects, digest.hex())
                    objects.append(record.about())
        except lmdb.Error as error:
            _log.error("the rest of %s cannot be listed: %s", self._where, error)
        return Listing(objects, None)

    def usage(self) -> TierUsage:
        totals = Totals()
        try:
            with self._environment.begin() as txn:
                totals = self._tables.totals(txn)
        except lmdb.Error as error:
            self._trouble.failed(error)
        return TierUsage(
            capacity_bytes=self._capacity_bytes,
            used_bytes=totals.used_bytes,
            num_objects=totals.num_objects,
            trouble=self._trouble.message,
        )

    def sync(self) -> None:
        """Data is on the disk since it was written; now the index names it also after a power cut."""
        try:
            self._environment.sync(True)
        except lmdb.Error as error:
            self._trouble.failed(error)

    def close(self) -> None:
        self._opened.close()

    def _find(self, name: TierKey) -> Record | None:
        try:
            with self._environment.begin() as txn:
                record = self._tables.find(txn, name.key)
        except lmdb.Error as error:
            _log.error("%s cannot be looked up in %s: %s", name.key, self._where, error)
            return None
        return record if record is not None and record.name == name else None

    def _fit(self) -> int:
        """Where the next object goes. What lies beyond a capacity that was lowered is dropped."""
        with self._environment.begin(write=True) as txn:
            totals = self._tables.totals(txn)
            for record in self._tables.placed(txn, self._data_bytes, max(self._data_bytes, self._data.num_bytes)):
                self._tables.delete(txn, totals, record)
            self._tables.set_totals(txn, totals)
        if self._data.num_bytes > self._data_bytes:
            self._data.truncate(self._data_bytes)
        return totals.head

    def _batches(self, objects: Sequence[NewTierObject]) -> Iterator[list[int]]:
        """The numbers of objects that are written together; those that are too large are left out."""
        batch: list[int] = []
        num_bytes = 0
        for index, item in enumerate(objects):
            size = item.about.size_bytes
            if size > self._data_bytes // 4:
                continue
            if batch and (num_bytes + size > self._batch_bytes or len(batch) == self._batch_objects):
                yield batch
                batch, num_bytes = [], 0
            batch.append(index)
            num_bytes += size
        if batch:
            yield batch

    def _write_batch(self, objects: Sequence[NewTierObject], batch: Sequence[int], written: Written) -> bool:
        """Whether it was stored."""
        try:
            return self._store(objects, batch, written)
        except (lmdb.Error, OSError) as error:
            self._trouble.failed(error)
        return False

    def _store(self, objects: Sequence[NewTierObject], batch: Sequence[int], written: Written) -> bool:
        new = self._new(objects, batch, written)
        if not new:
            return True
        lengths = [space_bytes(item.about.size_bytes) for item in new.values()]
        end = self._end()
        if 2 * sum(lengths) > end:
            self._trouble.refuse(
                f"the disk of {self._where} has {format_size(self._folder.free_bytes())} free, of which "
                f"{format_size(self._reserve_bytes)} are left to others: free space, or lower the tier's capacity or reserve"
            )
            return False
        written.dropped.extend(self._make_index_room(new.values()))
        offsets = places(self._head, lengths, end)
        self._write_data(list(new.values()), offsets, lengths, written.dropped)
        self._name_new(new, offsets, written)
        self._trouble.ended()
        return True

    def _new(
        self, objects: Sequence[NewTierObject], batch: Sequence[int], written: Written
    ) -> dict[int, NewTierObject]:
        """What is not there, of each key the newest; by number."""
        newest: dict[str, int] = {}
        with self._environment.begin() as txn:
            for index in batch:
                about = objects[index].about
                record = self._tables.find(txn, about.key)
                other = newest.get(about.key)
                written.stored[index] = record is not None and record.name == about.name
                is_newer = record is None or record.allocation_id < about.allocation_id
                if is_newer and (other is None or objects[other].about.allocation_id < about.allocation_id):
                    newest[about.key] = index
        return {index: objects[index] for index in newest.values()}

    def _write_data(
        self, items: Sequence[NewTierObject], offsets: Sequence[int], lengths: Sequence[int], dropped: list[TierKey]
    ) -> None:
        written_over = []
        for run in runs(offsets, lengths):
            if offsets[run.start] == 0 != self._head:
                written_over.append((self._head, self._capacity_bytes))  # the end of the file is left out
            written_over.append((offsets[run.start], offsets[run.stop - 1] + lengths[run.stop - 1]))
        dropped += self._clear(written_over)
        for run in runs(offsets, lengths):
            self._data.write(offsets[run.start], [items[number].data or NOTHING for number in run])
        self._data.sync()

    def _name_new(self, new: dict[int, NewTierObject], offsets: Sequence[int], written: Written) -> None:
        """The index names what was written."""
        dropped: list[TierKey] = []
        head = self._head
        with self._environment.begin(write=True) as txn:
            totals = self._tables.totals(txn)
            for item, offset in zip(new.values(), offsets, strict=True):
                about = item.about
                old = self._tables.find(txn, about.key)
                if old is not None:
                    self._tables.delete(txn, totals, old)
                    dropped.append(old.name)
                record = Record(offset, about.size_bytes, about.allocation_id, about.checksum, about.key, about.parent)
                self._tables.put(txn, totals, record)
                head = record.end
            totals.head = head
            self._tables.set_totals(txn, totals)
        self._head = head
        written.dropped.extend(dropped)
        for index in new:
            written.stored[index] = True

    def _make_index_room(self, new: Iterable[NewTierObject]) -> list[TierKey]:
        """Many small objects fill the index before the data file: then the oldest go, and some more at once."""
        with self._environment.begin() as txn:
            used_bytes = self._tables.totals(txn).index_bytes + sum(row_bytes(item.about) for item in new)
            if used_bytes <= self._most_index_bytes:
                return []
            surplus = used_bytes - self._most_index_bytes + self._most_index_bytes // 16
            found = []
            for record in self._tables.oldest(txn, self._head):
                if surplus <= 0:
                    break
                found.append(record)
                surplus -= row_bytes(record)
        return self._drop(found)

    def _clear(self, regions: Sequence[tuple[int, int]]) -> list[TierKey]:
        """Drops the objects that lie there, the oldest first."""
        with self._environment.begin() as txn:
            found = [record for start, end in regions for record in self._tables.placed(txn, start, end)]
        return self._drop(found)

    def _drop(self, found: Sequence[Record]) -> list[TierKey]:
        dropped: list[TierKey] = []
        unique = list(dict.fromkeys(found))
        for start in range(0, len(unique), self._batch_objects):
            with self._environment.begin(write=True) as txn:
                totals = self._tables.totals(txn)
                for record in unique[start : start + self._batch_objects]:
                    if self._tables.find(txn, record.key) == record:  # no reader has removed it meanwhile
                        self._tables.delete(txn, totals, record)
                        dropped.append(record.name)
                self._tables.set_totals(txn, totals)
        return dropped

    def _end(self) -> int:
        """How far the data file may reach, so that the disk keeps its reserve."""
        free = max(0, self._folder.free_bytes() - self._reserve_bytes)
        return min(self._data_bytes, self._data.num_bytes + free)


def _checked_capacity(settings: TierSettings) -> int:
    if settings.options:
        raise ConfigError(f"expected no options for tier lmdb, got {', '.join(settings.options)}")
    if not settings.path:
        raise ConfigError("expected a folder on a local disk as the path of tier lmdb, got nothing")
    if settings.capacity_bytes < SMALLEST_BYTES:
        raise ConfigError(
            f"expected a capacity of at least {format_size(SMALLEST_BYTES)} for tier lmdb, "
            f"got {format_size(settings.capacity_bytes)}"
        )
    return settings.capacity_bytes


def _open(path: Path, index_bytes: int) -> lmdb.Environment:
    """A commit's pages go to the disk before the page that names them; that one follows with the next commit, or `sync`."""
    try:
        environment = lmdb.open(str(path), map_size=index_bytes, max_dbs=NUM_TABLES, metasync=False, mode=0o600)
        environment.reader_check()  # readers of a process that was killed
    except lmdb.Error as error:
        raise OSError(
            errno.EIO, f"{path} cannot be opened: {error}; if it is damaged, delete it (it is a cache)"
        ) from error
    return environment
