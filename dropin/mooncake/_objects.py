"""Objects as Python values: put, get, look for, remove."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mooncake._arguments import each, first_failure, spread, the_bytes, the_key, the_keys
from mooncake._codes import Code, code_of
from mooncake._lifecycle import Lifecycle
from mooncake._link import Link
from mooncake._memory import BufferHandle, new_bytes
from mooncake._replicas import DEFAULT, ReplicaDescriptor, ReplicateConfig, describe, groups_fit, of_some
from mooncake_core.store.client import Pieces
from mooncake_core.transfer.slices import total_bytes


class ObjectCalls(Lifecycle):
    """Values are copied into the pool before a call returns; what is read is the caller's own."""

    def put(self, key: str, value: Any, config: ReplicateConfig = DEFAULT) -> int:
        """Stores a buffer (bytes, bytearray, memoryview, array)."""
        return self._put([the_key(key)], [[the_bytes(value)]], config)[0]

    def put_parts(self, key: str, *parts: Any, config: ReplicateConfig = DEFAULT) -> int:
        """Stores buffers as one object, one after the other."""
        return self._put([the_key(key)], [[the_bytes(part) for part in parts]], config)[0]

    def put_batch(self, keys: Sequence[str], values: Sequence[Any], config: ReplicateConfig = DEFAULT) -> int:
        """Stores several; 0, or the first failure."""
        return self._put_batch(keys, values, config, upsert=False)

    def upsert(self, key: str, value: Any, config: ReplicateConfig = DEFAULT) -> int:
        """As put, also in place of an older object; until it is stored readers see that one."""
        return self._put([the_key(key)], [[the_bytes(value)]], config, upsert=True)[0]

    def upsert_parts(self, key: str, *parts: Any, config: ReplicateConfig = DEFAULT) -> int:
        """As put_parts, also in place of an older object."""
        return self._put([the_key(key)], [[the_bytes(part) for part in parts]], config, upsert=True)[0]

    def upsert_batch(self, keys: Sequence[str], values: Sequence[Any], config: ReplicateConfig = DEFAULT) -> int:
        """As put_batch, also in place of older objects."""
        return self._put_batch(keys, values, config, upsert=True)

    def get(self, key: str) -> bytes:
        """An object's bytes; empty when it is not there."""
        return self.get_batch([key])[0]

    def get_batch(self, keys: Sequence[str]) -> list[bytes]:
        """Objects' bytes; empty ones for those that are not there."""
        wanted = the_keys(keys)
        values = [b""] * len(wanted)

        def destination(index: int, size_bytes: int) -> Pieces:
            values[index], view = new_bytes(size_bytes)
            return [view]

        codes = self._get(wanted, destination)
        return [value if code > 0 else b"" for value, code in zip(values, codes, strict=True)]

    def get_buffer(self, key: str) -> BufferHandle | None:
        """An object's bytes in a buffer; None when it is not there."""
        return self.batch_get_buffer([key])[0]

    def batch_get_buffer(self, keys: Sequence[str]) -> list[BufferHandle | None]:
        """As get_buffer, for several."""
        wanted = the_keys(keys)
        handles: list[BufferHandle | None] = [None] * len(wanted)

        def destination(index: int, size_bytes: int) -> Pieces:
            handles[index] = handle = BufferHandle(size_bytes)
            return [memoryview(handle)]

        codes = self._get(wanted, destination)
        return [handle if code >= 0 else None for handle, code in zip(handles, codes, strict=True)]

    def is_exist(self, key: str) -> int:
        """1 when it can be read, 0 when not, negative when that cannot be said. Renews no lease."""
        return self.batch_is_exist([key])[0]

    def batch_is_exist(self, keys: Sequence[str]) -> list[int]:
        """As is_exist, for several."""
        wanted = the_keys(keys)
        if not wanted:
            return []
        return self._ask(lambda link: list(map(int, link.store.exists(wanted))), lambda code: each(code, wanted))

    def get_size(self, key: str) -> int:
        """Bytes of an object, or a code."""
        wanted = the_key(key)

        def work(link: Link) -> int:
            (found,) = link.store.describe([wanted])
            return Code.OBJECT_NOT_FOUND if found is None else found.size_bytes

        return self._ask(work, int)

    def remove(self, key: str, force: bool = False) -> int:
        """Removes an object; with force also one that a reader has a lease on."""
        return self.batch_remove([key], force)[0]

    def batch_remove(self, keys: Sequence[str], force: bool = False) -> list[int]:
        """As remove, for several."""
        wanted = the_keys(keys)
        if not wanted:
            return []
        return self._ask(
            lambda link: [code_of(code) for code in link.store.remove(wanted, force=force)],
            lambda code: each(code, wanted),
        )

    def remove_by_regex(self, regex_pattern: str, force: bool = False) -> int:
        """Removes the objects in whose keys the regular expression (RE2) is found, and that nobody reads, with force all; how
        many went, or a code."""
        wanted = the_key(regex_pattern)
        if not wanted:  # upstream: it is found nowhere
            return 0
        return self._ask(lambda link: link.store.remove_matching(wanted, force=force), int)

    def remove_all(self, force: bool = False) -> int:
        """Removes every object that nobody reads, with force all; how many went."""
        return self._ask(lambda link: link.store.remove_all(force=force), int)

    def get_replica_desc(self, key: str) -> list[ReplicaDescriptor]:
        """Where an object's replicas lie; none when it is not there."""
        return self.batch_get_replica_desc([key]).get(key, [])

    def batch_get_replica_desc(self, keys: Sequence[str]) -> dict[str, list[ReplicaDescriptor]]:
        """As get_replica_desc, for those objects that are there."""
        wanted = the_keys(keys)

        def work(link: Link) -> dict[str, list[ReplicaDescriptor]]:
            found = link.store.describe(wanted)
            return {key: list(describe(known)) for key, known in zip(wanted, found, strict=True) if known is not None}

        return self._ask(work, lambda code: {})

    def _put_batch(self, keys: Sequence[str], values: Sequence[Any], config: ReplicateConfig, *, upsert: bool) -> int:
        wanted, buffers = the_keys(keys), [[the_bytes(value)] for value in values]
        if len(wanted) != len(buffers):
            return Code.INVALID_PARAMS
        return first_failure(self._put(wanted, buffers, config, upsert=upsert))

    def _put(
        self, keys: Sequence[str], values: Sequence[Pieces | None], config: ReplicateConfig, *, upsert: bool = False
    ) -> list[int]:
        """A value that is None is refused, and one without a byte, as upstream does: a read of it could not be told from a
        miss."""
        if not keys:
            return []
        if not groups_fit(config, keys):
            return each(Code.INVALID_PARAMS, keys)
        full = [(index, pieces) for index, pieces in enumerate(values) if pieces and total_bytes(pieces)]
        if len(full) == len(keys):
            return self._put_full(keys, [pieces for _, pieces in full], config, upsert=upsert)
        places = [index for index, _ in full]
        chosen = [keys[index] for index in places]
        put = self._put_full(chosen, [pieces for _, pieces in full], of_some(config, places), upsert=upsert)
        return spread(len(keys), places, put)

    def _put_full(
        self, keys: Sequence[str], values: Sequence[Pieces], config: ReplicateConfig, *, upsert: bool
    ) -> list[int]:
        if not keys:
            return []
        return self._ask(lambda link: link.put(keys, values, config, upsert=upsert), lambda code: each(code, keys))

    def _get(self, keys: Sequence[str], destination: Any) -> list[int]:
        if not keys:
            return []
        return self._ask(lambda link: link.get(keys, destination), lambda code: each(code, keys))
