"""What the environment tells `mooncake.engine`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mooncake.engine import TransferEngine

MIB = 1 << 20


def engine() -> TransferEngine:
    made = TransferEngine()
    assert made.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    return made


def test_engines_that_look_before_they_sleep_move_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONCAKE_BUSY_POLL", "100us")
    near, far = engine(), engine()
    here = np.random.default_rng(1).integers(0, 255, 3 * MIB, dtype=np.uint8)
    there = np.zeros_like(here)
    for made, memory in ((near, here), (far, there)):
        assert made.register_memory(memory.ctypes.data, memory.nbytes) == 0
    assert near._endpoint._engine._paths["tcp"]._settings.busy_poll_s == pytest.approx(100e-6)
    peer = f"127.0.0.1:{far.get_rpc_port()}"
    for start, length in ((0, 1), (4096, 4096), (MIB, MIB)):
        ends = here.ctypes.data + start, there.ctypes.data + start
        assert near.transfer_sync_write(peer, *ends, length) == 0
        assert (there[start : start + length] == here[start : start + length]).all()
        there[start : start + length] += 1
        assert near.transfer_sync_read(peer, *ends, length) == 0
        assert (there[start : start + length] == here[start : start + length]).all()


def test_a_time_to_look_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("MOONCAKE_BUSY_POLL", "soon")
    assert TransferEngine().initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == -101
    assert "MOONCAKE_BUSY_POLL: expected a duration like 30s, 100ms or 5m, got 'soon'" in caplog.text
    monkeypatch.setenv("MOONCAKE_BUSY_POLL", "100")
    assert TransferEngine().initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == -101
    assert "MOONCAKE_BUSY_POLL: expected a duration of at most 10ms, as 100us, got 100s" in caplog.text
