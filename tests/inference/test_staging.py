"""A GPU's KV and its copy on the host, without a GPU: the CUDA runtime's part is played by memmove."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from mooncake_core.inference.contract import Slice
from mooncake_core.inference.torch.staging import HostMirror, StagedDepartures, runs, touched

SHAPE = (8, 3, 2, 4, 2, 8)


class Runtime:
    """Copies at once, and counts."""

    def __init__(self) -> None:
        self.num_copies = 0

    def pin(self, address: int, num_bytes: int) -> bool:
        return False

    def copy_rows(
        self, target: int, source: int, *, pitch_bytes: int, width_bytes: int, num_rows: int, to_host: bool
    ) -> None:
        self.num_copies += 1
        for row in range(num_rows):
            ctypes.memmove(target + row * pitch_bytes, source + row * pitch_bytes, width_bytes)


def test_runs_of_neighbouring_blocks() -> None:
    assert runs([]) == []
    assert runs([4]) == [(4, 1)]
    assert runs([7, 3, 4, 5, 0, 4]) == [(0, 1), (3, 3), (7, 1)]


def test_blocks_with_new_kv() -> None:
    parts = [
        Slice(sequence_id=1, token_ids=[1] * 5, start=6, block_ids=[9, 8, 7]),
        Slice(sequence_id=2, token_ids=[1], start=0, block_ids=[3]),
    ]
    assert touched(parts, 4) == [8, 7, 3]


@pytest.mark.parametrize("layer", [None, 0, 2])
@pytest.mark.parametrize("by_runtime", [True, False])
def test_what_is_named_is_copied_and_nothing_else(layer: int | None, by_runtime: bool) -> None:
    kv, host = torch.randn((9, *SHAPE[1:])), torch.randn(SHAPE)
    runtime: Any = Runtime() if by_runtime else None
    mirror = HostMirror(kv, host, runtime)
    layers = slice(None) if layer is None else layer
    expected = kv.clone()
    expected[[5, 1, 2, 6], layers] = host[[5, 1, 2, 6], layers]
    mirror.stage_in([5, 1, 2, 6], layer)
    assert torch.equal(kv, expected)
    on_host = host.clone()
    on_host[[0, 7]] = kv[[0, 7]]
    mirror.stage_out([0, 7])
    assert torch.equal(host, on_host)
    assert runtime is None or runtime.num_copies == 4
    mirror.close()


class Event:
    def __init__(self, arrived: bool) -> None:
        self.arrived = arrived

    def query(self) -> bool:
        return self.arrived

    def synchronize(self) -> None:
        self.arrived = True


def test_a_layer_counts_as_written_when_its_copy_is_there() -> None:
    events: list[Event] = []
    written: list[int] = []

    class Mirror:
        def depart(self, block_ids: list[int], layer: int, stream: object) -> Event:
            events.append(Event(arrived=layer == 1))
            return events[-1]

    class Watcher:
        def before_layer(self, layer: int) -> None: ...

        def layer_written(self, layer: int) -> None:
            assert events[layer].arrived
            written.append(layer)

    departures = StagedDepartures(Mirror(), [1], None, Watcher())  # type: ignore[arg-type]
    departures.layer_written(0)
    departures.layer_written(1)
    assert written == []  # in order: the second has arrived, the first has not
    events[0].arrived = True
    departures.layer_written(2)
    assert written == [0, 1]
    departures.finish()
    assert written == [0, 1, 2]
