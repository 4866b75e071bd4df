"""The far end of `mooncake bench transfer`: a child process (`python -m mooncake_core.bench.transfer_target`), or another host's.

stdin of the child: one line, the Boot message; its end is the parent's. stdout: one line, the Ready message. Others ask for
Ready on the port of the raw socket baseline.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import struct
import sys
import threading
from collections.abc import Generator, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from mooncake_core.address import HostPort
from mooncake_core.bench.movers import RAW_DONE, RAW_REQUEST, receive_into, tune
from mooncake_core.errors import PeerUnreachable, ProtocolError, UsageError
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.host import default_host_id
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.wire.messages.memory import SegmentDescriptor

HOST: Final = "127.0.0.1"
DESCRIBE: Final = 0
"""In the place of a kind: asks for the Ready message."""
LENGTH: Final = struct.Struct("<Q")
LONGEST_READY_BYTES: Final = 1 << 20
ASK_S: Final = 10.0


class Boot(Struct, frozen=True, kw_only=True):
    """What to offer."""

    transports: list[str]
    region_bytes: int
    busy_poll_s: float = 0.0


class Ready(Struct, frozen=True, kw_only=True):
    """Where it is."""

    segment: SegmentDescriptor
    raw_port: int
    """Of the raw socket baseline, which reads and writes the same memory."""


@contextlib.contextmanager
def offer(
    transports: Sequence[str], num_bytes: int, *, host: str = HOST, port: int = 0, busy_poll_s: float = 0.0
) -> Generator[Ready]:
    """Offers memory while the context lasts; whoever reaches the host can read and write it. `port` is the baseline's.

    Raises:
        UsageError: it cannot listen there.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listener(host, port))
        region = SharedMemory("bench-target", num_bytes)
        stack.callback(region.close)
        engine = TransferEngine(
            owner="bench-target",
            host_id=default_host_id(),
            incarnation=secrets.randbits(63),
            transports=transports,
            listen_host=host,
            busy_poll_s=busy_poll_s,
        )
        stack.callback(engine.close)
        segment = engine.export(engine.register_memory(region.view, region.descriptor), writable=True)
        ready = Ready(segment=segment, raw_port=listener.getsockname()[1])
        threading.Thread(target=_accept, args=(listener, region.view, ready), name="raw-accept", daemon=True).start()
        yield ready


def ask(address: HostPort) -> Ready:
    """What a target offers.

    Raises:
        PeerUnreachable: nobody answers.
        ProtocolError: it is no target.
    """
    try:
        with socket.create_connection(address, ASK_S) as connection:
            connection.sendall(RAW_REQUEST.pack(DESCRIBE, 0, 0))
            (length,) = LENGTH.unpack(_receive(connection, LENGTH.size))
            if length > LONGEST_READY_BYTES:
                raise ProtocolError(f"{address} is no target of `mooncake bench transfer`")
            return msgspec.json.decode(_receive(connection, length), type=Ready)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"{address} is no target of `mooncake bench transfer`: {error}") from error
    except OSError as error:
        reason = error.strerror or "no answer"
        raise PeerUnreachable(
            f"no target answers at {address} ({reason}): start `mooncake bench transfer --target` there, and give the address "
            "that it prints"
        ) from error


def serve(boot: Boot) -> None:
    """Offers memory until stdin ends."""
    with offer(boot.transports, boot.region_bytes, busy_poll_s=boot.busy_poll_s) as ready:
        os.write(sys.stdout.fileno(), msgspec.json.encode(ready) + b"\n")
        while os.read(sys.stdin.fileno(), 1):
            pass


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"cannot listen on {HostPort(host, port)}: {error.strerror}") from error


def _accept(listener: socket.socket, memory: memoryview, ready: Ready) -> None:
    with contextlib.suppress(OSError):  # closed: the end
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve_raw, args=(connection, memory, ready), name="raw-serve", daemon=True).start()


def serve_raw(connection: socket.socket, memory: memoryview, ready: Ready | None = None) -> None:
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
            elif kind == Kind.WRITE:
                receive_into(connection, block)
                connection.sendall(RAW_DONE)
            elif kind == DESCRIBE and ready is not None:
                said = msgspec.json.encode(ready)
                connection.sendall(LENGTH.pack(len(said)) + said)
            else:
                return


def _receive(connection: socket.socket, num_bytes: int) -> bytes:
    data = bytearray(num_bytes)
    receive_into(connection, memoryview(data))
    return bytes(data)


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
