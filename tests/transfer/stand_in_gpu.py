"""A stand-in for a GPU that the process under test finds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mooncake_core.testing.device_memory import StandInDevice, StandInDriver
from mooncake_core.transfer import device_memory

GPU_BYTES = 96 << 20


@contextmanager
def found_gpu(monkeypatch: pytest.MonkeyPatch, num_bytes: int = GPU_BYTES) -> Iterator[StandInDevice]:
    """Full of random bytes. What it pinned is unpinned in the end, or the test fails."""
    gpu = StandInDevice(num_bytes)
    gpu.content[:] = os.urandom(1 << 20) * (num_bytes >> 20)
    driver = StandInDriver(gpu)
    monkeypatch.setattr(device_memory, "find_driver", lambda: driver)
    monkeypatch.setattr(device_memory, "_made_views", False)
    yield gpu
    gpu.close()
    assert gpu.pinned == {}
