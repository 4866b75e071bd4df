"""How memory is named across processes."""

from __future__ import annotations

from msgspec import Struct


class SegmentDescriptor(Struct, frozen=True, kw_only=True, gc=False):
    """Exported memory, as a peer needs it to read or write one-sidedly.

    `paths` holds one opaque descriptor per transport, made by that transport and read only by it. It carries the key
    of this export: when the export is withdrawn, transfers that name it fail with StaleSegment and touch nothing.
    """

    owner: str
    """Name of the process that exports; for messages and logs."""
    host_id: str
    incarnation: int
    """Random per process start: two descriptors of different incarnations never mean the same bytes."""
    length_bytes: int
    paths: dict[str, bytes]
