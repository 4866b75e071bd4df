"""What an operator does with a running pool: copy, drain, stop; every byte is there afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooncake_core.store.client import PutObject, StoreClient
from mooncake_core.testing.cluster import Cluster, alive, as_json, wait_for
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.host import default_host_id
from mooncake_core.wire.client import Client

pytestmark = pytest.mark.cluster

KEYS = [f"key-{number}" for number in range(20)]
VALUES = [os.urandom(5000) for _ in KEYS]
READS = 5
"""Before the objects must have come: leases are short here, and a machine may stand still for longer."""
CONFIG = """
cluster: operations
master: {port: 0, admin_port: 0}
gateway: {port: 0}
store: [{name: node, count: 3, capacity: 8MiB, drain_on_stop: true}]
prefill: []
decode: []
pool: {read_lease: 200ms}
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    config = tmp_path / "operations.yaml"
    config.write_text(CONFIG)
    made = Cluster(config, tmp_path)
    yield made
    made.stop()


async def exchange(address: str, *, put: bool) -> list[bytes]:
    """Puts all values to node-0, or reads them."""
    engine = TransferEngine(owner="test", host_id=default_host_id(), incarnation=os.getpid(), transports=["shm", "tcp"])
    master = Client(address, name="test")
    store = StoreClient(master, engine=engine)
    buffers = [bytearray(len(value)) for value in VALUES]
    if put:
        objects = [PutObject(key=key, pieces=[memoryview(value)]) for key, value in zip(KEYS, VALUES, strict=True)]
        assert set(await store.put(objects, timeout_s=10, preferred_node="node-0")) == {""}
    else:
        places = [[memoryview(buffer)] for buffer in buffers]
        for _ in range(READS):
            came = await store.get(KEYS, places, timeout_s=10)
            if all(came):
                break
        assert all(came)
    await master.close()
    engine.close()
    return [bytes(buffer) for buffer in buffers]


def objects_on(cluster: Cluster) -> dict[str, tuple[int, str]]:
    nodes = as_json(cluster.command("inspect", "nodes", "--json"))["nodes"]
    return {node["name"]: (node["num_objects"], node["state"]) for node in nodes}


def test_objects_are_copied_drained_and_survive_the_stop_of_their_node(cluster: Cluster) -> None:
    address = cluster.state.master_address
    asyncio.run(exchange(address, put=True))
    copied = cluster.command("admin", "copy", *KEYS[:3], "--to", "node-1", "--wait", "--json")
    assert copied.returncode == 0, copied.stderr
    assert [task["state"] for task in as_json(copied)["tasks"]] == ["done"] * 3
    again = cluster.command("admin", "copy", KEYS[0], "--to", "node-1")
    assert (again.returncode, again.stderr) == (1, f"error: {KEYS[0]} to node-1: object_exists\n")
    listed = cluster.command("admin", "tasks")
    assert listed.stdout.count("\tdone\t") == 3
    assert objects_on(cluster) == {"node-0": (20, "ready"), "node-1": (3, "ready"), "node-2": (0, "ready")}

    drained = cluster.command("admin", "drain", "node-0", "--json")
    assert drained.returncode == 0, drained.stderr
    report = as_json(drained)["drain"]
    assert (report["state"], report["moved"], report["released"], report["objects_left"]) == ("drained", 17, 3, 0)
    assert objects_on(cluster)["node-0"] == (0, "drained")
    assert "\t20 of 20" in cluster.command("inspect", "nodes").stdout
    assert cluster.command("admin", "undrain", "node-0").returncode == 0
    unknown = cluster.command("admin", "drain", "node-9")
    assert unknown.returncode == 1
    assert "expected a node of the pool, got node-9" in unknown.stderr

    pid = cluster.pid("node-1")
    os.kill(pid, signal.SIGTERM)  # it drains before it ends
    wait_for(lambda: not alive(pid))
    assert asyncio.run(exchange(address, put=False)) == VALUES

    pinned = cluster.command("admin", "pin", KEYS[0], "none")
    assert (pinned.returncode, pinned.stdout, pinned.stderr) == (
        1,
        "1 objects pinned\n",
        "error: none: object_not_found\n",
    )
    evicted = cluster.command("admin", "evict", "node-2", "--json")
    assert evicted.returncode == 0, evicted.stderr
    report = cluster.cache()
    assert (report.num_objects, report.problems) == (20 - as_json(evicted)["objects"], [])


def test_replicas_outlive_a_node_that_is_killed(cluster: Cluster) -> None:
    address = cluster.state.master_address
    asyncio.run(exchange(address, put=True))
    made = cluster.command("admin", "replicate", "--prefix", "key-", "-n", "2", "--wait")
    assert made.returncode == 0, made.stderr
    cluster.kill("node-0")
    wait_for(lambda: objects_on(cluster)["node-1"][0] + objects_on(cluster)["node-2"][0] == 20)
    assert asyncio.run(exchange(address, put=False)) == VALUES
