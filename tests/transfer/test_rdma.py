"""The rdma transport keeps the contract, where there is a device: scripts/rdma-guest has one."""

from __future__ import annotations

import pytest

from mooncake_core.errors import PluginUnavailable
from mooncake_core.testing.transport_contract import TransportContract
from mooncake_rdma.ports import read_ports, usable_ports

try:
    usable_ports(read_ports())
    from mooncake_rdma.transport import RdmaTransport
except PluginUnavailable as error:
    pytest.skip(f"{error}; scripts/rdma-guest runs a command where there is one", allow_module_level=True)


class TestRdma(TransportContract):
    transport = RdmaTransport
