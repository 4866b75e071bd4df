"""`mooncake.engine` with addresses of a GPU, as vLLM's MooncakeConnector gives them: by a stand-in that no CPU may touch."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mooncake.engine import TransferEngine
from mooncake_core.testing.device_memory import StandInDevice
from tests.transfer.stand_in_gpu import found_gpu

MIB = 1 << 20
BLOCK = 16 << 10
LAYER = 8 * MIB
HALF = 32 * MIB


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInDevice]:
    with found_gpu(monkeypatch, 2 * HALF) as gpu:
        yield gpu


@pytest.fixture
def engines(gpu: StandInDevice) -> Iterator[tuple[TransferEngine, TransferEngine]]:
    """Of two workers, each with four layers of KV on the GPU."""
    made = []
    for start in (gpu.address, gpu.address + HALF):
        engine = TransferEngine()
        assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
        assert engine.batch_register_memory([start + LAYER * layer for layer in range(4)], [LAYER] * 4) == 0
        made.append(engine)
    yield made[0], made[1]
    for engine in made:
        engine._close()


def _blocks(start: int) -> list[int]:
    """Of every layer some, in the order in which a request has them."""
    return [start + LAYER * layer + BLOCK * block for layer in range(4) for block in (7, 3, 4, 5, 100, 0)]


def test_blocks_go_by_raw_addresses_at_both_ends(
    gpu: StandInDevice, engines: tuple[TransferEngine, TransferEngine]
) -> None:
    prefill, decode = engines
    name = f"127.0.0.1:{decode.get_rpc_port()}"
    near, far = _blocks(gpu.address), _blocks(gpu.address + HALF)[::-1]
    assert prefill.batch_transfer_sync_write(name, near, far, [BLOCK] * len(near)) == 0
    for here, there in zip(near, far, strict=True):
        here, there = here - gpu.address, there - gpu.address
        assert gpu.content[here : here + BLOCK] == gpu.content[there : there + BLOCK]
    gpu.content[:HALF] = bytes(HALF)
    batch = prefill.batch_transfer_async_read(name, near, far, [BLOCK] * len(near))
    assert prefill.get_batch_transfer_status([batch]) == 0
    for here, there in zip(near, far, strict=True):
        here, there = here - gpu.address, there - gpu.address
        assert gpu.content[here : here + BLOCK] == gpu.content[there : there + BLOCK] != bytes(BLOCK)


def test_a_whole_layer(gpu: StandInDevice, engines: tuple[TransferEngine, TransferEngine]) -> None:
    prefill, decode = engines
    name = f"127.0.0.1:{decode.get_rpc_port()}"
    assert prefill.transfer_sync_write(name, gpu.address, gpu.address + HALF, LAYER) == 0
    assert gpu.content[:LAYER] == gpu.content[HALF : HALF + LAYER]
    assert prefill.transfer_sync_read(name, gpu.address + LAYER, gpu.address + HALF, LAYER) == 0
    assert gpu.content[LAYER : 2 * LAYER] == gpu.content[:LAYER]
    assert prefill.transfer_sync_write(name, gpu.address, gpu.address + HALF + 5, LAYER) == -1


def test_bytes_in_and_out_of_a_buffer(gpu: StandInDevice, engines: tuple[TransferEngine, TransferEngine]) -> None:
    prefill, _ = engines
    assert prefill.write_bytes_to_buffer(gpu.address + 5, "hello", 5) == 0
    assert gpu.content[5:10] == b"hello"
    assert prefill.read_bytes_from_buffer(gpu.address + 5, 5) == b"hello"
    gpu.copies_until_failure = 0
    assert prefill.write_bytes_to_buffer(gpu.address + 5, "hello", 5) < 0
    assert prefill.read_bytes_from_buffer(gpu.address + 5, 5) == b""


def test_what_is_no_memory_is_still_refused(gpu: StandInDevice, engines: tuple[TransferEngine, TransferEngine]) -> None:
    prefill, _ = engines
    assert prefill.register_memory(4096, 10) == -999
    assert prefill.register_memory(gpu.address + 2 * HALF - 5, 10) == -999
    assert prefill.register_memory(gpu.address + 5, 10) == -7
    assert prefill.unregister_memory(gpu.address) == 0
    assert prefill.register_memory(gpu.address, LAYER) == 0


def test_memory_of_the_host_goes_to_a_gpu(gpu: StandInDevice, engines: tuple[TransferEngine, TransferEngine]) -> None:
    prefill, decode = engines
    name = f"127.0.0.1:{decode.get_rpc_port()}"
    address = prefill.allocate_managed_buffer(MIB)
    text = os.urandom(1000).hex()
    assert prefill.write_bytes_to_buffer(address, text, len(text)) == 0
    assert prefill.transfer_sync_write(name, address, gpu.address + HALF + 9, len(text)) == 0
    assert gpu.content[HALF + 9 : HALF + 9 + len(text)] == text.encode()
    assert prefill.free_managed_buffer(address, MIB) == 0
