"""How much memory the master takes, and for each object of the pool."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Final

ENOUGH_OBJECTS: Final = 1000
"""With fewer objects the rest of the process counts for more than they do."""


class MasterMemory:
    """Resident memory of this process, since it was made."""

    def __init__(self) -> None:
        self._at_start = resident_bytes()

    def per_object_bytes(self, num_objects: int) -> int:
        """What has come per object; 0 where there are too few to tell."""
        if num_objects < ENOUGH_OBJECTS:
            return 0
        return max(0, resident_bytes() - self._at_start) // num_objects


def resident_bytes() -> int:
    """Of this process."""
    _, resident_pages, *_ = Path("/proc/self/statm").read_text().split()
    return int(resident_pages) * resource.getpagesize()
