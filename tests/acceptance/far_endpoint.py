"""An endpoint in a process of its own: prints its name, then answers each line of stdin with what it holds open."""

from __future__ import annotations

import json
import sys

from mooncake_core.transfer import Endpoint
from tests.acceptance.footprint import footprint


def main() -> None:
    with Endpoint(transports=sys.argv[1].split(",")) as endpoint:
        endpoint.allocate_memory(1 << 20)
        print(endpoint.name, flush=True)
        for _ in sys.stdin:
            print(json.dumps(footprint()), flush=True)


if __name__ == "__main__":
    main()
