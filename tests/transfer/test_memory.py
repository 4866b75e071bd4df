"""The memory transport keeps the contract."""

from __future__ import annotations

from mooncake_core.testing.memory_transport import Hub
from mooncake_core.testing.transport_contract import TransportContract


class TestMemory(TransportContract):
    transport = Hub(seed=7).transport()
