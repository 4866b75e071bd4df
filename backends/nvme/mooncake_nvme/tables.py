"""What lies where in the index: three tables, changed together in one transaction.

meta    "format" → version; "totals" → Totals
places  offset in the data file → digest of the key of the object that begins there
names   digest of a key → Record
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import lmdb
import msgspec
from msgspec import Struct

from mooncake_core.errors import ConfigError
from mooncake_core.store.tiers.contract import TierKey, TierObject
from mooncake_core.store.tiers.verified import key_digest

FORMAT: Final = 1
"""Raised by every change of what is above or in the structs below. A version reads its own and the one before it."""
READABLE_FORMATS: Final = (1,)
NUM_TABLES: Final = 3


def space_bytes(size_bytes: int) -> int:
    """Of an object in the data file: an empty one has a place of its own, too."""
    return max(1, size_bytes)


class Record(Struct, frozen=True, array_like=True):
    """An object in `names`."""

    offset: int
    size_bytes: int
    allocation_id: int
    checksum: int
    key: str
    parent: str

    @property
    def name(self) -> TierKey:
        return TierKey(self.key, self.allocation_id)

    @property
    def end(self) -> int:
        return self.offset + space_bytes(self.size_bytes)

    def about(self) -> TierObject:
        return TierObject(
            key=self.key,
            allocation_id=self.allocation_id,
            size_bytes=self.size_bytes,
            checksum=self.checksum,
            parent=self.parent,
        )


class Totals(Struct, array_like=True):
    """Of all objects, and where the next one is written."""

    head: int = 0
    used_bytes: int = 0
    num_objects: int = 0
    index_bytes: int = 0
    """What their rows take here, about."""


def row_bytes(about: Record | TierObject) -> int:
    """What an object takes in the index, with the unused part of its pages."""
    return 200 + 2 * (len(about.key.encode()) + len(about.parent.encode()))


_record = msgspec.msgpack.Decoder(Record)
_totals = msgspec.msgpack.Decoder(Totals)
_encode = msgspec.msgpack.Encoder().encode


class Tables:
    """The tables of an open index; every method takes the transaction it works in."""

    def __init__(self, environment: lmdb.Environment, path: str) -> None:
        """Makes them in a new index.

        Raises:
            ConfigError: it has another format, or is none of ours.
        """
        is_new = environment.stat()["entries"] == 0
        self._meta = environment.open_db(b"meta")
        if is_new:
            with environment.begin(write=True) as txn:
                txn.put(b"format", _encode(FORMAT), db=self._meta)
        with environment.begin() as txn:
            _check_format(txn.get(b"format", db=self._meta), path)
        self._places = environment.open_db(b"places")
        self._names = environment.open_db(b"names")

    def totals(self, txn: lmdb.Transaction) -> Totals:
        found = txn.get(b"totals", db=self._meta)
        return Totals() if found is None else _totals.decode(found)

    def set_totals(self, txn: lmdb.Transaction, totals: Totals) -> None:
        txn.put(b"totals", _encode(totals), db=self._meta)

    def find(self, txn: lmdb.Transaction, key: str) -> Record | None:
        """The record of a key."""
        record = self._named(txn, key_digest(key))
        return record if record is not None and record.key == key else None

    def put(self, txn: lmdb.Transaction, totals: Totals, record: Record) -> None:
        """An object whose key and place are not taken."""
        digest = key_digest(record.key)
        txn.put(_place(record.offset), digest, db=self._places)
        txn.put(digest, _encode(record), db=self._names)
        totals.used_bytes += record.size_bytes
        totals.num_objects += 1
        totals.index_bytes += row_bytes(record)

    def delete(self, txn: lmdb.Transaction, totals: Totals, record: Record) -> None:
        txn.delete(_place(record.offset), db=self._places)
        txn.delete(key_digest(record.key), db=self._names)
        totals.used_bytes -= record.size_bytes
        totals.num_objects -= 1
        totals.index_bytes -= row_bytes(record)

    def placed(self, txn: lmdb.Transaction, start: int, end: int) -> list[Record]:
        """The objects that have bytes in [start, end) of the data file, in their order there."""
        with txn.cursor(db=self._places) as cursor:
            found = []
            if cursor.set_range(_place(start)):
                for place, digest in cursor:
                    if _offset(place) >= end:
                        break
                    found.append(self._named(txn, digest))
                has_before = cursor.set_range(_place(start)) and cursor.prev()
            else:
                has_before = cursor.last()
            if has_before:
                found.insert(0, self._named(txn, cursor.value()))
        return [record for record in found if record is not None and record.end > start]

    def oldest(self, txn: lmdb.Transaction, head: int) -> Iterator[Record]:
        """All objects, those first that are written over first."""
        with txn.cursor(db=self._places) as cursor:
            is_there = cursor.set_range(_place(head)) or cursor.first()
            start = bytes(cursor.key()) if is_there else b""
            for has_wrapped in (False, True):
                for place, digest in cursor if is_there else ():
                    if has_wrapped and bytes(place) >= start:
                        return
                    record = self._named(txn, digest)
                    if record is not None:
                        yield record
                is_there = is_there and cursor.first()

    def records(self, txn: lmdb.Transaction, start: bytes) -> Iterator[tuple[bytes, Record]]:
        """(digest, record) of the objects from a digest on."""
        with txn.cursor(db=self._names) as cursor:
            if cursor.set_range(start):
                for digest, found in cursor:
                    yield bytes(digest), _record.decode(found)

    def _named(self, txn: lmdb.Transaction, digest: bytes | memoryview) -> Record | None:
        found = txn.get(digest, db=self._names)
        return None if found is None else _record.decode(found)


def _place(offset: int) -> bytes:
    return offset.to_bytes(8, "big")


def _offset(place: bytes | memoryview) -> int:
    return int.from_bytes(place, "big")


def _check_format(found: bytes | memoryview | None, path: str) -> None:
    version = None if found is None else msgspec.msgpack.decode(found)
    if version in READABLE_FORMATS:
        return
    if not isinstance(version, int):
        raise ConfigError(f"expected {path} to be a tier's folder, but something else wrote it: give another path")
    raise ConfigError(
        f"expected format {' or '.join(map(str, READABLE_FORMATS))} in {path}, found {version}, which "
        f"{'a newer' if version > FORMAT else 'a much older'} version of mooncake wrote: run that version, or delete the "
        "folder (it is a cache) or give another path"
    )
