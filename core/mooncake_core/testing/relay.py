"""A network that holds bytes back: stands between the two ends of a TCP connection."""

from __future__ import annotations

import contextlib
import socket
import threading

PART_BYTES = 1 << 16


class Gate:
    """Lets bytes of one direction pass, or holds them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._room: int | None = None

    def hold(self, after_bytes: int = 0) -> None:
        """So many bytes still pass; what follows, the end too, waits for `open`."""
        with self._changed:
            self._room = after_bytes
            self._changed.notify_all()

    def open(self) -> None:
        """Lets everything pass."""
        with self._changed:
            self._room = None
            self._changed.notify_all()

    @property
    def is_used_up(self) -> bool:
        """Whether all that might pass has passed."""
        with self._changed:
            return self._room == 0

    def take(self, wanted: int) -> int:
        """Waits until something may pass; how much of `wanted`."""
        with self._changed:
            self._changed.wait_for(lambda: self._room != 0)
            if self._room is None:
                return wanted
            taken = min(wanted, self._room)
            self._room -= taken
            return taken


class Relay:
    """Listens on `port` and passes each connection on to host:port of the target."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self.to_target = Gate()
        self.to_initiator = Gate()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, name="relay-accept", daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Ends the connections that there are."""
        for sock in [*self._sockets]:  # who is cut off connects anew meanwhile, and that stays
            _shut_down(sock)

    def close(self) -> None:
        """Ends all connections, for good."""
        _shut_down(self._listener)
        self._threads[0].join()
        self.cut()
        self.to_target.open()
        self.to_initiator.open()
        for thread in self._threads:
            thread.join()
        for sock in (*self._sockets, self._listener):
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # closed
            far = socket.create_connection(self._target)
            self._sockets += [near, far]
            for source, sink, gate in ((near, far, self.to_target), (far, near, self.to_initiator)):
                thread = threading.Thread(target=_pump, args=(source, sink, gate), name="relay", daemon=True)
                self._threads.append(thread)
                thread.start()


def _pump(source: socket.socket, sink: socket.socket, gate: Gate) -> None:
    with contextlib.suppress(OSError):
        while data := _receive(source):
            while data:
                taken = gate.take(len(data))
                sink.sendall(data[:taken])
                data = data[taken:]
    gate.take(1)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _receive(source: socket.socket) -> bytes:
    try:
        return source.recv(PART_BYTES)
    except ConnectionResetError:
        return b""


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
