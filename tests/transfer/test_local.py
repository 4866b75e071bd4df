"""The local transport keeps the contract."""

from __future__ import annotations

from mooncake_core.testing.transport_contract import TransportContract
from mooncake_core.transfer.local import LocalTransport


class TestLocal(TransportContract):
    transport = LocalTransport
