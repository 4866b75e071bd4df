"""The port of a role for Prometheus."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from mooncake_core.roles.metrics import MetricsPort
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.engine import TransferEngine


async def test_what_was_transferred_is_counted_by_link() -> None:
    engine = TransferEngine(owner="here", host_id="here", incarnation=1, transports=["tcp"])
    far = TransferEngine(owner="far", host_id="far", incarnation=2, transports=["tcp"])
    segment = far.export(far.register_memory(bytearray(16)), writable=True)
    port = MetricsPort("127.0.0.1", 0, engine)
    assert all(done.error is None for done in await engine.transfer(Kind.WRITE, segment, [([memoryview(b"hello")], 0)]))
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{port.url}/metrics")
    found = {
        sample.name: (sample.labels, sample.value)
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name.startswith("mooncake_transfer")
    }
    labels = {"transport": "tcp", "local": "127.0.0.1", "peer": "127.0.0.1"}
    assert found == {
        "mooncake_transfer_bytes_total": (labels, 5.0),
        "mooncake_transfer_operations_total": (labels, 1.0),
        "mooncake_transfer_failures_total": (labels, 0.0),
        "mooncake_transfer_set_aside_total": (labels, 0.0),
    }
    await port.close()
    engine.close()
    far.close()


async def test_without_a_port_there_is_nothing() -> None:
    engine = TransferEngine(owner="here", host_id="here", incarnation=1, transports=[])
    port = MetricsPort("127.0.0.1", None, engine)
    assert port.url == ""
    await port.close()
    engine.close()
