"""Objects straight out of, and into, memory that the caller names by address."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mooncake._arguments import each, the_keys
from mooncake._codes import Code
from mooncake._memory import take
from mooncake._objects import ObjectCalls
from mooncake._replicas import DEFAULT, ReplicateConfig
from mooncake_core.store.client import Pieces
from mooncake_core.transfer.slices import total_bytes

_log = logging.getLogger("mooncake.store")

Addresses = Sequence[int]
Sizes = Sequence[int]


class PointerCalls(ObjectCalls):
    """Addresses are ints, inside of memory that was registered. Nothing is copied on the way."""

    def register_buffer(self, buffer_ptr: int, size: int) -> int:
        """Allows [buffer_ptr, buffer_ptr + size) in calls of this store; it must stay allocated until it is unregistered."""
        code = self._registered.add(buffer_ptr, size)
        if code == Code.NOT_SUPPORTED:
            _log.error(
                "register_buffer: the CPU cannot read memory at %#x: memory of a GPU cannot be registered here, copy "
                "through memory of the host",
                buffer_ptr,
            )
        return code

    def unregister_buffer(self, buffer_ptr: int) -> int:
        """Takes the permission back."""
        return self._registered.remove(buffer_ptr)

    def put_from(self, key: str, buffer_ptr: int, size: int, config: ReplicateConfig = DEFAULT) -> int:
        """Stores memory as an object."""
        return self.batch_put_from([key], [buffer_ptr], [size], config)[0]

    def batch_put_from(
        self, keys: Sequence[str], buffer_ptrs: Addresses, sizes: Sizes, config: ReplicateConfig = DEFAULT
    ) -> list[int]:
        """As put_from, for several."""
        return self.batch_put_from_multi_buffers(keys, _lists(buffer_ptrs), _lists(sizes), config)

    def batch_put_from_multi_buffers(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Addresses],
        all_sizes: Sequence[Sizes],
        config: ReplicateConfig = DEFAULT,
    ) -> list[int]:
        """Stores several ranges of memory, one after the other, as each object."""
        return self._put_from(keys, all_buffer_ptrs, all_sizes, config, upsert=False)

    def upsert_from(self, key: str, buffer_ptr: int, size: int, config: ReplicateConfig = DEFAULT) -> int:
        """As put_from, also in place of an older object."""
        return self.batch_upsert_from([key], [buffer_ptr], [size], config)[0]

    def batch_upsert_from(
        self, keys: Sequence[str], buffer_ptrs: Addresses, sizes: Sizes, config: ReplicateConfig = DEFAULT
    ) -> list[int]:
        """As upsert_from, for several."""
        return self._put_from(keys, _lists(buffer_ptrs), _lists(sizes), config, upsert=True)

    def put_from_with_metadata(
        self,
        key: str,
        buffer_ptr: int,
        metadata_buffer_ptr: int,
        size: int,
        metadata_size: int,
        config: ReplicateConfig = DEFAULT,
    ) -> int:
        """Stores the metadata and then the data as one object."""
        return self.batch_put_from_multi_buffers(
            [key], [[metadata_buffer_ptr, buffer_ptr]], [[metadata_size, size]], config
        )[0]

    def get_into(self, key: str, buffer_ptr: int, size: int) -> int:
        """Reads an object into memory that has room for it; bytes read, or a code."""
        return self.batch_get_into([key], [buffer_ptr], [size])[0]

    def batch_get_into(self, keys: Sequence[str], buffer_ptrs: Addresses, sizes: Sizes) -> list[int]:
        """As get_into, for several."""
        return self.batch_get_into_multi_buffers(keys, _lists(buffer_ptrs), _lists(sizes))

    def batch_get_into_multi_buffers(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Addresses],
        all_sizes: Sequence[Sizes],
        prefer_alloc_in_same_node: bool = False,
    ) -> list[int]:
        """Reads each object into several ranges of memory, one after the other."""
        wanted = the_keys(keys)
        if not len(wanted) == len(all_buffer_ptrs) == len(all_sizes):
            return each(Code.INVALID_PARAMS, wanted)
        rooms = [self._registered.views(*room) for room in zip(all_buffer_ptrs, all_sizes, strict=True)]

        def destination(index: int, size_bytes: int) -> Pieces | None:
            pieces = rooms[index]
            if pieces is None or total_bytes(pieces) < size_bytes:
                return None
            return take(pieces, size_bytes)

        return self._get(wanted, destination)

    def _put_from(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Addresses],
        all_sizes: Sequence[Sizes],
        config: ReplicateConfig,
        *,
        upsert: bool,
    ) -> list[int]:
        wanted = the_keys(keys)
        if not len(wanted) == len(all_buffer_ptrs) == len(all_sizes):
            return each(Code.INVALID_PARAMS, wanted)
        views = [self._registered.views(*memory) for memory in zip(all_buffer_ptrs, all_sizes, strict=True)]
        return self._put(wanted, views, config, upsert=upsert)


def _lists(values: Sequence[int]) -> list[list[int]]:
    return [[value] for value in values]
