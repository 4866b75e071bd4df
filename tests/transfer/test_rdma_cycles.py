"""A thousand initiators of the rdma transport, one after the other, leave nothing, at the target either."""

from __future__ import annotations

from mooncake_core.testing.cluster import wait_for
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.engine import TransferEngine
from tests.acceptance.footprint import footprint
from tests.transfer.rdma_fabric import Network, transport_on

CYCLES = 1000
WARM_UP = 100
GROWTH_BYTES = 1 << 20
GROWTH_BLOCKS = 9000
"""Of Python's small objects: ten of each cycle."""
MORE_MAPS = 50
"""The allocators' arenas come and go."""


def test_a_thousand_initiators_leave_nothing() -> None:
    network = Network()
    transports = [transport_on(network)]
    there = TransferEngine(owner="there", host_id="there", incarnation=1, transports=transports)
    memory = bytearray(4096)
    segment = there.export(there.register_memory(memory), writable=True)

    def cycle(number: int) -> None:
        here = TransferEngine(owner="here", host_id="here", incarnation=2 + number, transports=transports)
        here.register_memory(bytearray(64))
        piece = number.to_bytes(8, "little")
        (moved,) = here.move(Kind.WRITE, segment, [([memoryview(piece)], 8)])
        assert moved.error is None
        assert memory[8:16] == piece
        here.close()

    def held() -> dict[str, int]:
        wait_for(lambda: not network.pairs)  # the target has heard of the last one's end
        return {"memory regions": len(network.regions), **footprint()}

    for number in range(WARM_UP):
        cycle(number)
    before = held()
    for number in range(WARM_UP, CYCLES):
        cycle(number)
    wait_for(lambda: _is_flat(before, held()))
    there.close()
    assert network.regions == {}


def _is_flat(before: dict[str, int], after: dict[str, int]) -> bool:
    growth = {"maps": MORE_MAPS, "heap_bytes": GROWTH_BYTES, "python_blocks": GROWTH_BLOCKS}
    return all(after[name] <= before[name] + growth.get(name, 0) for name in before)
