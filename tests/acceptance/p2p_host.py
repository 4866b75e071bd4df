"""A P2P store on a host of its own: does what the lines on its stdin say, and answers each with a line.

python -m tests.acceptance.p2p_host ADDRESS [DIRECTORY]
"""

from __future__ import annotations

import mmap
import random
import sys
import time

import xxhash

from mooncake_core.p2p import P2PStore

BLOCK_BYTES = 1 << 20


def content(num_bytes: int) -> mmap.mmap:
    """Random bytes, repeated with a number in front so that no two blocks are alike."""
    memory = mmap.mmap(-1, num_bytes)
    block = random.Random(1).randbytes(BLOCK_BYTES)
    for start in range(0, num_bytes, BLOCK_BYTES):
        memory[start : start + BLOCK_BYTES] = (start.to_bytes(8, "little") + block[8:])[: num_bytes - start]
    return memory


def main(address: str, directory: str | None) -> None:
    with P2PStore(address, directory=directory, insecure=True) as store:
        print(store.directory, flush=True)
        memory: mmap.mmap | None = None
        for line in sys.stdin:
            order, _, argument = line.strip().partition(" ")
            if order == "register":
                memory = content(int(argument))
                store.register("object", memory)
                print(xxhash.xxh3_64_hexdigest(memory), flush=True)
            elif order == "get":
                memory = mmap.mmap(-1, int(argument))
                memory[:: mmap.PAGESIZE] = bytes(len(memory[:: mmap.PAGESIZE]))  # touched before the clock runs
                began = time.monotonic()
                store.get_replica("object", memory)
                took_s = time.monotonic() - began
                print(f"{took_s} {xxhash.xxh3_64_hexdigest(memory)}", flush=True)
            elif order == "drop":
                store.delete_replica("object")
                print("dropped", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
