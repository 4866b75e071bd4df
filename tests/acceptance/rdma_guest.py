"""What runs in the virtual machine of `scripts/acceptance rdma`: `bandwidth`, or `cluster FOLDER`, which has to be named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from mooncake_core.bench.movers import EngineMover, Load, measure
from mooncake_core.bench.statistics import median_ratio
from mooncake_core.bench.transfer import target_process
from mooncake_core.testing.cluster import Cluster
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.units import format_size

CONFIGS = Path(__file__).parents[2] / "configs"
PERFTEST = {Kind.READ: "ib_read_bw", Kind.WRITE: "ib_write_bw"}
DEVICE = "rxe0"
PAIRS = 10
REGION_BYTES = 64 << 20
MEASURED_BYTES = 32 << 20
"""By the programs of perftest in one run."""
SECONDS = 0.5
READY_S = 900.0


def bandwidth(sizes: list[int]) -> list[dict[str, object]]:
    """The engine's over perftest's, in turn; one row per direction and size."""
    engine = TransferEngine(owner="bandwidth", host_id="here", incarnation=1, transports=["rdma"])
    memory = SharedMemory("bandwidth", REGION_BYTES)
    engine.register_memory(memory.view)
    rows: list[dict[str, object]] = []
    with target_process(["rdma"], REGION_BYTES) as target:
        for kind in (Kind.WRITE, Kind.READ):
            for size in sizes:
                load = Load(kind=kind, block_bytes=size, checksum=False)
                batch = max(2, (8 << 20) // size)
                mover = EngineMover(load, memory.view, 2, engine=engine, segment=target.segment, batch=batch)
                measure(mover, 0.0)
                pairs = [(measure(mover, SECONDS).bytes_per_s, perftest_bytes_per_s(kind, size)) for _ in range(PAIRS)]
                ratio = median_ratio(pairs)
                assert ratio is not None
                ours, theirs = (sorted(side)[PAIRS // 2] for side in zip(*pairs, strict=True))
                row = {
                    "direction": kind.name.lower(),
                    "size": format_size(size),
                    "mb_per_s": round(ours / 1e6, 1),
                    PERFTEST[kind]: round(theirs / 1e6, 1),
                    "ratio": round(ratio.median, 3),
                    "interval": [round(ratio.low, 3), round(ratio.high, 3)],
                }
                print(row, flush=True)
                rows.append(row)
    engine.close()
    return rows


def perftest_bytes_per_s(kind: Kind, size: int) -> float:
    """What the program that comes with rdma-core's tools reaches between two processes, over the same device."""
    count = max(5, MEASURED_BYTES // size)
    command = [PERFTEST[kind], "-d", DEVICE, "-x", "1", "-F", "-s", str(size), "-n", str(count)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        for _ in range(100):  # until it listens
            client = subprocess.run([*command, "127.0.0.1"], capture_output=True, text=True, check=False)
            found = re.search(rf"^\s*{size}\s+\d+\s+[\d.]+\s+([\d.]+)", client.stdout, re.MULTILINE)
            if client.returncode == 0 and found:
                server.wait()
                return float(found[1]) * (1 << 20)
            assert server.poll() is None, f"{' '.join(command)} ended with {server.returncode}: {client.stderr}"
            time.sleep(0.05)
        server.kill()
    raise AssertionError(f"{' '.join(command)} does not answer: {client.stdout}{client.stderr}")


def cluster(folder: Path, prompt: list[int], count: int) -> dict[str, object]:
    """The tokens that prefill and decode, and a pool, make of a prompt, twice, with nothing but rdma between them."""
    folder.mkdir(parents=True, exist_ok=True)
    before = sent_packets()
    sides = [f"{side}.0.engine.dtype=float32" for side in ("prefill", "decode")]
    running = Cluster(CONFIGS / "1p1d.yaml", folder, "transfer.transports=[rdma]", *sides, ready_s=READY_S)
    running.http.timeout = READY_S
    try:
        answers = [running.complete(prompt, max_tokens=count, ignore_eos=True, return_token_ids=True) for _ in range(2)]
    finally:
        running.stop()
    return {
        "tokens": [answer["choices"][0]["token_ids"] for answer in answers],
        "cached_tokens": [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers],
        "packets": sent_packets() - before,
    }


def sent_packets() -> int:
    """By the device until now."""
    return int(Path(f"/sys/class/infiniband/{DEVICE}/ports/1/hw_counters/sent_pkts").read_text())


def main() -> None:
    what, asked = sys.argv[1], json.loads(sys.argv[2])
    result = bandwidth(asked) if what == "bandwidth" else cluster(Path("/tmp/cluster"), *asked)
    Path("/out/result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
