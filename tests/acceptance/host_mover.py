"""A process on a host of its own, which has one address or several, with commas between them: with `target ADDRESS` it offers
memory; with `initiator ADDRESS PEER SECONDS [WEIGHTS]` it writes blocks of random sizes there and reads them back all the time,
and says of each pair what became of it, a line of JSON each. WEIGHTS, as JSON, are those of transfer.weights."""

from __future__ import annotations

import json
import os
import random
import sys
import time

from mooncake_core.errors import TransferError
from mooncake_core.transfer import Endpoint

MEMORY_BYTES = 64 << 20
LARGEST_BYTES = 4 << 20
TIMEOUT_S = 60.0


def main() -> None:
    role, address, *arguments = sys.argv[1:]
    first, *further = address.split(",")
    weights = json.loads(arguments[2]) if len(arguments) > 2 else {}
    with Endpoint(first, further_hosts=further, weights=weights, host_id=first, insecure=True) as endpoint:
        if role == "target":
            endpoint.allocate_memory(MEMORY_BYTES)
            print(endpoint.name, flush=True)
            sys.stdin.read()
        else:
            peer, seconds = arguments[:2]
            move(endpoint, peer, time.monotonic() + float(seconds))


def move(endpoint: Endpoint, name: str, until: float) -> None:
    """Until that time."""
    peer = endpoint.open(name)
    moments = random.Random(1)
    print(json.dumps({"began": time.monotonic()}), flush=True)
    while time.monotonic() < until:
        num_bytes = int(2 ** moments.uniform(0, LARGEST_BYTES.bit_length() - 1))
        address = peer.first_address + moments.randrange(MEMORY_BYTES - num_bytes)
        block, back = os.urandom(num_bytes), bytearray(num_bytes)
        began = time.monotonic()
        moved, error = [], ""
        try:
            moved.append(endpoint.write(peer, block, address, timeout_s=TIMEOUT_S))
            moved.append(endpoint.read(peer, back, address, timeout_s=TIMEOUT_S))
        except (TransferError, TimeoutError) as failure:
            error = str(failure)
        done = {"took_s": time.monotonic() - began, "bytes": num_bytes, "error": error}
        done["paths"] = [one.path for one in moved]
        done["carried"] = [[part.peer, part.num_bytes] for one in moved for part in one.carried()]
        print(json.dumps({**done, "right": bytes(back) == block}), flush=True)


if __name__ == "__main__":
    main()
