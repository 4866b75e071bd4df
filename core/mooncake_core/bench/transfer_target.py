"""The far end of `mooncake bench transfer`: `python -m mooncake_core.bench.transfer_target`.

stdin: one line, the Boot message; its end is the parent's. stdout: one line, the Ready message.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sys
import threading

import msgspec
from msgspec import Struct

from mooncake_core.bench.movers import RAW_DONE, RAW_REQUEST, receive_into, tune
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.host import default_host_id
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.wire.messages.memory import SegmentDescriptor

HOST = "127.0.0.1"


class Boot(Struct, frozen=True, kw_only=True):
    """What to offer."""

    transports: list[str]
    region_bytes: int


class Ready(Struct, frozen=True, kw_only=True):
    """Where it is."""

    segment: SegmentDescriptor
    raw_port: int
    """Of the raw socket baseline, which reads and writes the same memory."""


def serve(boot: Boot) -> None:
    """Offers memory until stdin ends."""
    region = SharedMemory("bench-target", boot.region_bytes)
    engine = TransferEngine(
        owner="bench-target",
        host_id=default_host_id(),
        incarnation=secrets.randbits(63),
        transports=boot.transports,
        listen_host=HOST,
    )
    try:
        registered = engine.register_memory(region.view, region.descriptor)
        segment = engine.export(registered, writable=True)
        listener = socket.create_server((HOST, 0))
        threading.Thread(target=_accept, args=(listener, region.view), name="raw-accept", daemon=True).start()
        ready = Ready(segment=segment, raw_port=listener.getsockname()[1])
        os.write(sys.stdout.fileno(), msgspec.json.encode(ready) + b"\n")
        while os.read(sys.stdin.fileno(), 1):
            pass
    finally:
        engine.close()


def _accept(listener: socket.socket, memory: memoryview) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve_raw, args=(connection, memory), name="raw-serve", daemon=True).start()


def serve_raw(connection: socket.socket, memory: memoryview) -> None:
    """The far end of the raw socket baseline; returns when the initiator is done."""
    tune(connection)
    header = memoryview(bytearray(RAW_REQUEST.size))
    with connection, contextlib.suppress(ConnectionError):  # the initiator is done
        while True:
            receive_into(connection, header)
            kind, offset, length = RAW_REQUEST.unpack(header)
            block = memory[offset : offset + length]
            if kind == Kind.READ:
                connection.sendall(block)
            else:
                receive_into(connection, block)
                connection.sendall(RAW_DONE)


def main() -> None:
    """Reads the Boot message and serves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process when it is done
    # Unbuffered: what follows the line is the parent's end, and must not be swallowed.
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(sys.stdin.fileno(), 1 << 16)
        if not part:
            return
        line += part
    serve(msgspec.json.decode(line, type=Boot))


if __name__ == "__main__":
    main()
