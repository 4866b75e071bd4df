"""Allocators of GPU memory that upstream offers, and this project has not got."""

from __future__ import annotations

from typing import Any, NoReturn


class NVLinkAllocator:
    """Memory that other GPUs reach over NVLink."""

    @staticmethod
    def get_allocator(device: Any) -> NoReturn:
        raise RuntimeError(
            "NVLinkAllocator is not available: no transport over NVLink is served; leave out custom_mem_pool"
        )


class BarexAllocator:
    """Memory for the Barex transport."""

    @staticmethod
    def get_allocator(device: Any) -> NoReturn:
        raise RuntimeError(
            "BarexAllocator is not available: there is no Barex transport here; leave out custom_mem_pool"
        )
