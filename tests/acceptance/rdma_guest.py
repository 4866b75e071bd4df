"""What runs in the virtual machine of `scripts/acceptance rdma`: `bandwidth`, or `cluster FOLDER`, which has to be named."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from mooncake_core.bench.movers import EngineMover, Load, PerftestMover, measure
from mooncake_core.bench.statistics import median_ratio
from mooncake_core.bench.transfer import target_process
from mooncake_core.testing.cluster import Cluster
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.units import format_size

CONFIGS = Path(__file__).parents[2] / "configs"
DEVICE = "rxe0"
PAIRS = 10
REGION_BYTES = 64 << 20
SECONDS = 0.5
READY_S = 1500.0
"""Emulated, torch and transformers take minutes to import, and writing the model down as a graph some more."""
COST = "{prefill_per_token: 100ms, step_base: 2s}"
"""So that no engine times itself when it starts, which takes more minutes."""
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""In each process: there are as many as cores."""


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
                base = PerftestMover(load, memory.view, 1)
                pairs = [
                    (measure(mover, SECONDS).bytes_per_s, measure(base, SECONDS).bytes_per_s) for _ in range(PAIRS)
                ]
                ratio = median_ratio(pairs)
                assert ratio is not None
                ours, theirs = (sorted(side)[PAIRS // 2] for side in zip(*pairs, strict=True))
                row = {
                    "direction": kind.name.lower(),
                    "size": format_size(size),
                    "mb_per_s": round(ours / 1e6, 1),
                    PerftestMover.PROGRAMS[kind]: round(theirs / 1e6, 1),
                    "ratio": round(ratio.median, 3),
                    "interval": [round(ratio.low, 3), round(ratio.high, 3)],
                }
                print(row, flush=True)
                rows.append(row)
    engine.close()
    return rows


def cluster(folder: Path, prompt: list[int], count: int) -> dict[str, object]:
    """The tokens that prefill and decode, and a pool, make of a prompt, twice, with nothing but rdma between them."""
    folder.mkdir(parents=True, exist_ok=True)
    before = sent_packets()
    os.environ.update(THREADS)
    sides = [
        f"{side}.0.engine.{setting}"
        for side in ("prefill", "decode")
        for setting in ("dtype=float32", "threads=1", f"cost={COST}")
    ]
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
