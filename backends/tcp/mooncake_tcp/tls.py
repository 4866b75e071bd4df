"""Sockets with TLS 1.3, both ends of which show a certificate of the cluster's authority. The kernel encrypts where it can."""

from __future__ import annotations

import errno
import select
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, cast

from mooncake_core.errors import AuthenticationFailed, ConfigError, VersionMismatch
from mooncake_core.transfer.contract import TlsFiles
from mooncake_core.transfer.sockets import family_of, name_of

RECORD_BYTES: Final = 16 << 10
"""What is encrypted together: shorter buffers are worth putting together."""
OP_ENABLE_KTLS: Final = getattr(ssl, "OP_ENABLE_KTLS", 1 << 3)
"""Python names it from 3.12 on, OpenSSL has it from 3.0 on; where the kernel has no `tls` module it means nothing."""
_NO_TLS: Final = "WRONG_VERSION_NUMBER"
"""Of what is said: no version of TLS at all."""


class TlsSocket(ssl.SSLSocket):
    """The calls of frames.py on a TLS connection, where one thread may receive while another sends: OpenSSL wants them to take
    turns, so neither waits for the network within its turn."""

    _turn: threading.Lock
    _patience_ms: float | None = None
    _is_talking = False

    def connect(self, address: Any) -> None:
        """And does the TLS handshake."""
        try:
            super().connect(address)
        except ssl.SSLCertVerificationError as error:
            raise AuthenticationFailed(
                f"{name_of(*address)} shows a certificate that transfer.tls.ca does not vouch for: {error.verify_message}"
            ) from error
        except ssl.SSLEOFError as error:
            raise ConnectionResetError(errno.ECONNRESET, "the peer ended the TLS handshake") from error
        except ssl.SSLError as error:
            if error.reason == _NO_TLS:
                raise VersionMismatch(
                    f"{name_of(*address)} does not speak TLS, which transfer.tls asks for here"
                ) from error
            raise _network_error(error) from error
        self.talk()

    def talk(self) -> Self:
        """The handshake is done: from now on each waits for himself."""
        timeout_s = self.gettimeout()
        self._turn = threading.Lock()
        self._receiving, self._sending = select.poll(), select.poll()
        for poller in (self._receiving, self._sending):
            poller.register(self, 0)
        self._is_talking = True
        self.settimeout(timeout_s)
        return self

    def settimeout(self, value: float | None) -> None:
        self._patience_ms = None if value is None else value * 1000
        super().settimeout(0.0 if self._is_talking else value)

    def shutdown(self, how: int) -> None:
        """Wakes whoever waits; without a word to the peer, which knows how much was to come."""
        socket.socket.shutdown(self, how)

    def sendall(self, data: Any, flags: int = 0) -> None:
        view = memoryview(data)
        while view.nbytes:
            written = self._turns(partial(self._ssl.write, view), self._sending)
            if not written:
                raise ConnectionResetError(errno.ECONNRESET, "the peer closed the connection")
            view = view[written:]

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None) -> int:  # type: ignore[override]
        """All of them; none with MSG_DONTWAIT, which leaves them to the thread that can wait."""
        if flags & socket.MSG_DONTWAIT:
            raise BlockingIOError(errno.EAGAIN, "TLS may have to wait")
        for part in _records(buffers):
            self.sendall(part)
        return sum([len(buffer) for buffer in buffers])

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """As much as there is, up to a record; MSG_WAITALL is up to the caller."""
        view = memoryview(buffer)[: nbytes or None]
        waits = not flags & socket.MSG_DONTWAIT
        return self._turns(partial(self._ssl.read, view.nbytes, view), self._receiving, waits=waits)

    def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0) -> tuple[int, list[Any], int, Any]:  # type: ignore[override]
        """Into the first of them that is not empty."""
        view = next(buffer for buffer in buffers if len(buffer))
        return self.recv_into(view, len(view), flags), [], 0, None

    @property
    def _ssl(self) -> Any:
        found = cast(Any, self)._sslobj
        if found is None:
            raise OSError(errno.EBADF, "it was closed")
        return found

    def _turns(self, act: Callable[[], int], poller: select.poll, *, waits: bool = True) -> int:
        """Tries until it was done, 0 at the end of the connection. The poller is that of the thread which sends, or receives."""
        while True:
            try:
                with self._turn:
                    return act()
            except ssl.SSLWantReadError:
                poller.modify(self, select.POLLIN)
            except ssl.SSLWantWriteError:
                poller.modify(self, select.POLLOUT)
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                return 0
            except ssl.SSLError as error:
                raise _network_error(error) from error
            if not waits:
                raise BlockingIOError(errno.EAGAIN, "nothing there yet")
            if not poller.poll(self._patience_ms):
                raise TimeoutError(errno.ETIMEDOUT, "timed out")


class TlsSockets:
    """Made once per transport: certificates are read then."""

    speaks_tls = True

    def __init__(self, files: TlsFiles) -> None:
        """Raises ConfigError where a file is missing, or is not what it should be."""
        self._client, self._server = contexts(files)

    def outgoing(self, host: str) -> socket.socket:
        return self._client.wrap_socket(socket.socket(family_of(host), socket.SOCK_STREAM))

    def incoming(self, connection: socket.socket) -> socket.socket:
        wrapped = self._server.wrap_socket(connection.dup(), server_side=True, do_handshake_on_connect=False)
        try:
            wrapped.settimeout(connection.gettimeout())
            wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
        assert isinstance(wrapped, TlsSocket)
        return wrapped.talk()


def contexts(files: TlsFiles) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Those of who connects, and of who is connected to. Raises as TlsSockets."""
    client = _context(ssl.PROTOCOL_TLS_CLIENT, files)
    client.check_hostname = False  # the authority is the cluster's own: who has its certificate is a member
    server = _context(ssl.PROTOCOL_TLS_SERVER, files)
    server.num_tickets = 0  # nobody resumes, and they would look like an answer that nobody asked for
    return client, server


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.sslsocket_class = TlsSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= OP_ENABLE_KTLS
    for setting, name in (("certificate", files.certificate), ("key", files.key), ("ca", files.ca)):
        if not Path(name).is_file():
            raise ConfigError(f"transfer.tls.{setting}: expected a file in PEM format, there is none at {name}")
    try:
        context.load_cert_chain(files.certificate, files.key, password="")  # else OpenSSL asks a terminal for it
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"transfer.tls: expected a certificate and its key in PEM format, got {files.certificate} and {files.key}: "
            f"{error.strerror or error}"
        ) from error
    try:
        context.load_verify_locations(files.ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"transfer.tls.ca: expected certificates in PEM format, got {files.ca}: {error.strerror or error}"
        ) from error
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _records(buffers: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Neighbours put together that fit in one record."""
    records: list[list[bytes | memoryview]] = []
    num_bytes = 0
    for buffer in buffers:
        num_bytes += len(buffer)
        if not records or num_bytes > RECORD_BYTES:
            records.append([])
            num_bytes = len(buffer)
        records[-1].append(buffer)
    return [b"".join(record) if len(record) > 1 else record[0] for record in records]


def _network_error(error: ssl.SSLError) -> ConnectionError:
    """OpenSSL's number of an error is none of the system's."""
    return ConnectionError(errno.EPROTO, f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}")
