"""The process at the other end: does what the lines on its stdin say, and answers each with a line of JSON."""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

_kept: dict[int, Any] = {}


def memory(num_bytes: int, fill: int) -> int:
    """The address of new memory."""
    made = (ctypes.c_char * num_bytes)()
    ctypes.memset(made, fill, num_bytes)
    address = ctypes.addressof(made)
    _kept[address] = made
    return address


def main() -> None:
    from mooncake.engine import TransferEngine

    engine = TransferEngine()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        if name == "memory":
            answer: Any = memory(*arguments)
        elif name == "content":
            answer = ctypes.string_at(*arguments).hex()
        elif name == "get_notifies":
            answer = [[told.name, told.msg] for told in engine.get_notifies()]
        else:
            answer = getattr(engine, name)(*arguments)
        print(f"\n{json.dumps({'answer': answer})}", flush=True)


if __name__ == "__main__":
    main()
