"""Setting a store up, what it contributes to the pool, and its end."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import Any

from mooncake._arguments import without_effect
from mooncake._codes import Code, code_of
from mooncake._link import Link, Linked
from mooncake._memory import HostMemory, Registered
from mooncake._settings import Settings, from_environment, settings
from mooncake_core.errors import MooncakeError

_log = logging.getLogger("mooncake.store")


class Lifecycle(Linked):
    """The part of a store that is about itself."""

    def __init__(self) -> None:
        super().__init__()
        self._registered = Registered()
        self._host_memory = HostMemory()
        self._end: weakref.finalize[..., Any] | None = None
        self._pool_left_bytes = 0

    def setup(self, *args: Any, **kwargs: Any) -> int:
        """Connects to the master and contributes a segment. In upstream's three forms: positional arguments, keywords
        (`local_hostname, metadata_server, global_segment_size, local_buffer_size, protocol, device_name,
        master_server_address`, and more), or one dictionary of them.

        Returns 0, or a negative code; the log says why.

        Raises:
            TypeError: an argument is unknown or of the wrong type; names it.
        """
        try:
            return self._connect(settings(args, kwargs))
        except MooncakeError as error:
            _log.error("setup: %s", error)
            return code_of(error)

    def setup_dummy(self, mem_pool_size: int, local_buffer_size: int, server_address: str) -> int:
        """A store that contributes nothing and has memory of its own to read into (`alloc_from_mem_pool`). There is no client
        daemon here that it would need: `server_address` is the master's."""
        code = self.setup(
            global_segment_size=0, local_buffer_size=local_buffer_size, master_server_address=server_address
        )
        self._pool_left_bytes = mem_pool_size if code == Code.OK else 0
        return code

    def init_all(self, protocol: str, device_name: str, mount_segment_size: int) -> int:
        """`setup` with a segment of that size and everything else from the environment: MOONCAKE_MASTER,
        MOONCAKE_LOCAL_HOSTNAME and the others that clients read."""
        said = {"protocol": protocol, "device_name": device_name, "global_segment_size": mount_segment_size}
        return self.setup({**from_environment(), **said})

    def alloc_from_mem_pool(self, size: int) -> int:
        """Registered memory from the pool that `setup_dummy` was given; its address, 0 when that is used up."""
        if not 0 < size <= self._pool_left_bytes:
            return 0
        address = self._host_memory.alloc(size)
        if address and self._registered.add(address, size) == Code.OK:
            self._pool_left_bytes -= size
            return address
        return 0

    def close(self) -> int:
        """Takes the segment away and disconnects. Calls under way end with a code. Idempotent."""
        self._link = None
        if self._end is not None:
            self._end()
        return Code.OK

    def get_hostname(self) -> str:
        """`host:port` of this store's segment, by which puts prefer it; empty before `setup`."""
        return self._link.hostname if self._link else ""

    def health_check(self) -> int:
        """0 when the master answers, 1 before `setup` and after `close`, 2 when it does not answer."""
        if self._link is None:
            return 1

        def work(link: Link) -> int:
            link.ping()
            return 0

        return self._ask(work, lambda code: 2)

    def allocate_and_mount_segment(self, size: int, protocol: str = "tcp", location: str = "") -> dict[str, Any]:
        """One segment more; `segment_ids` in the answer names it for unmounting."""

        def work(link: Link) -> dict[str, Any]:
            if protocol not in link.transports:
                without_effect("protocol of allocate_and_mount_segment", "a segment is served as `setup` was told")
            if location:
                without_effect("location of allocate_and_mount_segment", "the kernel places a segment's memory")
            return _mounted(link.contribute(size), size)

        return self._ask(work, _not_mounted)

    def mount_segment(
        self, path: str, size: int, offset: int = 0, protocol: str = "tcp", location: str = ""
    ) -> dict[str, Any]:
        """Not served: a segment is memory of a helper process, not a file that somebody else made."""
        _log.error("mount_segment: a file cannot be a segment; allocate_and_mount_segment makes one of memory")
        return _not_mounted(Code.NOT_SUPPORTED)

    def unmount_segment(self, segment_ids: Sequence[str], grace_period_seconds: int = 0) -> int:
        """Takes segments of this store away; what lies in them alone is gone."""
        if grace_period_seconds:
            without_effect("grace_period_seconds", "a segment goes at once; `mooncake admin drain` empties it first")

        def work(link: Link) -> int:
            known = [link.withdraw(segment) for segment in segment_ids]
            return Code.OK if all(known) else Code.SEGMENT_NOT_FOUND

        return self._ask(work, int)

    def unmount_and_free_segment(self, segment_ids: Sequence[str], grace_period_seconds: int = 0) -> int:
        """As unmount_segment: the memory ends with the segment."""
        return self.unmount_segment(segment_ids, grace_period_seconds)

    def unmount_local_disk_segment(self, grace_period_seconds: int = 0) -> int:
        """Not served: the SSD below a segment goes with the segment, when that is unmounted or the store closed."""
        _log.error(
            "unmount_local_disk_segment: the SSD below a segment goes with the segment: unmount that, or close the store"
        )
        return Code.NOT_SUPPORTED

    def _connect(self, wanted: Settings) -> int:
        if self._link is not None:
            self.close()
        link = Link(wanted)
        self._link = link
        self._end = weakref.finalize(self, link.close)  # also when the store is dropped, or the program ends
        return Code.OK


def _mounted(segment: str, size_bytes: int) -> dict[str, Any]:
    return {"ret": int(Code.OK), "segment_ids": [segment], "allocated_size": size_bytes}


def _not_mounted(code: int) -> dict[str, Any]:
    return {"ret": int(code), "segment_ids": [], "allocated_size": 0}
