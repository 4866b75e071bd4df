"""tcp with TLS: the contract holds over it, and whoever is none of the cluster is refused with a reason."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from mooncake_core.errors import ConfigError, PathFailed, VersionMismatch
from mooncake_core.testing.cluster import wait_for
from mooncake_core.testing.transport_contract import Ends, TransportContract
from mooncake_core.transfer import handshake
from mooncake_core.transfer.contract import Kind, TlsFiles, TransportSettings
from mooncake_tcp import TcpTransport
from mooncake_tcp.tls import TlsSockets
from mooncake_tcp.transport import TcpPath
from tests.transfer.certificates import Authority

HOSTS = ("127.0.0.1", "127.0.0.2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


class TlsEnds(Ends):
    """Each process has a certificate of its own; those in `given` what they have."""

    def __init__(
        self, authority: Authority, *, moves: bool = False, further: tuple[str, ...] = (), **given: TlsFiles | None
    ) -> None:
        self._authority = authority
        self._further = further
        self._given = given
        super().__init__(TcpTransport, moves=moves)

    def settings(self, owner: str, incarnation: int, secret: bytes | None) -> TransportSettings:
        tls = self._given[owner] if owner in self._given else self._authority.member(owner)
        return replace(super().settings(owner, incarnation, secret), further_hosts=self._further, tls=tls)


class TestTls(TransportContract):
    transport = TcpTransport

    @pytest.fixture(params=[False, True], ids=["post", "move"])
    def ends(self, request: pytest.FixtureRequest, authority: Authority) -> Iterator[Ends]:
        ends = TlsEnds(authority, moves=request.param)
        yield ends
        ends.close()


class TestTlsOverSeveralAddresses(TransportContract):
    transport = TcpTransport

    @pytest.fixture
    def ends(self, authority: Authority) -> Iterator[Ends]:
        ends = TlsEnds(authority, further=HOSTS[1:])
        yield ends
        ends.close()


def failure(ends: Ends, path: bytes | None = None) -> str:
    """Of a write that cannot be."""
    error = ends.transfer(Kind.WRITE, path or ends.export(writable=True), [memoryview(b"hello")], 0)
    assert isinstance(error, PathFailed)
    ends.close()
    return str(error)


def claiming(path: bytes, *, tls: bool) -> bytes:
    """A path that says something else of TLS than its process does."""
    return msgspec.msgpack.encode(msgspec.structs.replace(msgspec.msgpack.decode(path, type=TcpPath), tls=tls))


def test_reads_and_writes_of_all_sizes_at_once_come_through(authority: Authority) -> None:
    """Both ends have more to send than buffers hold, so neither may wait for its own turn to receive."""
    ends = TlsEnds(authority)
    memory, handle = ends.register(48 << 20)
    path = ends.target.export(handle, writable=True)
    assert path is not None
    draw = random.Random(5)
    half = memory.nbytes // 2
    memory[half:] = draw.randbytes(half)
    sizes = [1, 100, 16 << 10, (16 << 10) + 1, *(int(2 ** draw.uniform(0, 22)) for _ in range(24))]
    written, read, offset = [], [], 0
    for size in sizes:
        content, sink = draw.randbytes(size), bytearray(size)
        written.append((ends.operation(Kind.WRITE, path, [memoryview(content)], offset), content, offset))
        read.append((ends.operation(Kind.READ, path, [memoryview(sink)], half + offset), sink, half + offset))
        offset += size
    assert offset <= half
    both = [operation for pair in zip(written, read, strict=True) for operation, _, _ in pair]
    assert set(ends.complete(both).values()) == {None}
    for _, content, start in [*written, *read]:
        assert memory[start : start + len(content)] == content
    ends.close()


def test_who_speaks_plainly_is_told_nothing(authority: Authority) -> None:
    ends = TlsEnds(authority)
    named = msgspec.msgpack.decode(ends.export(writable=True), type=TcpPath)
    with socket.create_connection((named.host, named.port)) as sock:
        sock.sendall(b"is there anybody who speaks plainly?")
        said = b""
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(100):
                said += part
    assert handshake.MAGIC not in said
    ends.close()


def test_a_peer_of_another_authority_is_none_of_ours(authority: Authority, folder: Path) -> None:
    stranger = Authority(folder, "stranger").member("target")
    reason = failure(TlsEnds(authority, target=stranger))
    assert "shows a certificate that transfer.tls.ca does not vouch for" in reason


def test_an_initiator_of_another_authority_is_refused(authority: Authority, folder: Path) -> None:
    stranger = Authority(folder, "stranger").member("initiator")
    trusting = TlsFiles(stranger.certificate, stranger.key, authority.ca)
    assert "TLS: tlsv1 alert unknown ca" in failure(TlsEnds(authority, initiator=trusting))


def test_a_certificate_that_is_out_of_date_is_refused(authority: Authority) -> None:
    assert "certificate has expired" in failure(TlsEnds(authority, target=authority.member("old", days=-1)))


def test_ends_that_do_not_both_speak_it_say_so_at_once(authority: Authority) -> None:
    assert "127.0.0.1 over tcp: it speaks TLS only: set transfer.tls here too" in failure(
        TlsEnds(authority, initiator=None)
    )
    assert "it does not speak TLS, which transfer.tls asks for here: set it there too" in failure(
        TlsEnds(authority, target=None)
    )


def test_a_peer_that_says_something_else_of_itself_is_a_failed_path_and_no_hang(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hangs up on what it does not understand, or when it has waited long enough for something else: which of them is
    first, and what of it arrives, is not sure."""
    monkeypatch.setattr(handshake, "TIMEOUT_S", 0.2)
    ends = TlsEnds(authority, target=None)
    assert "127.0.0.1" in failure(ends, claiming(ends.export(writable=True), tls=True))
    ends = TlsEnds(authority, initiator=None)
    assert "127.0.0.1" in failure(ends, claiming(ends.export(writable=True), tls=False))


def test_one_that_answers_plainly_does_not_speak_it(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = TlsSockets(authority.member("here")).outgoing("127.0.0.1")
        sock.settimeout(20)
        with ThreadPoolExecutor(1) as pool, sock:
            connecting = pool.submit(sock.connect, server.getsockname())
            plain, _ = server.accept()
            with plain:
                plain.sendall(handshake.MAGIC + bytes(100))
                with pytest.raises(VersionMismatch, match="does not speak TLS, which transfer.tls asks for here"):
                    connecting.result()


def test_files_that_are_not_what_they_should_be_are_named(authority: Authority, folder: Path) -> None:
    good, other = authority.member("good"), authority.member("other")
    before = len(os.listdir("/proc/self/fd"))
    for files, message in (
        (
            TlsFiles(good.certificate, "no/such.key", good.ca),
            "transfer.tls.key: expected a file in PEM format, there is none",
        ),
        (TlsFiles(good.certificate, other.key, good.ca), "transfer.tls: expected a certificate and its key"),
        (TlsFiles(good.certificate, good.key, good.key), "transfer.tls.ca: expected certificates in PEM format"),
    ):
        with pytest.raises(ConfigError, match=message):
            TlsEnds(authority, initiator=files)
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_closing_frees_descriptors_and_threads(authority: Authority, folder: Path) -> None:
    stranger = Authority(folder, "stranger").member("target")
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for moves in (False, True):
        ends = TlsEnds(authority, moves=moves)
        path = ends.export(writable=False)
        assert ends.transfer(Kind.READ, path, [memoryview(bytearray(10))], 0) is None
        ends.close()
        failure(TlsEnds(authority, moves=moves, target=stranger))
    wait_for(lambda: (len(os.listdir("/proc/self/fd")), threading.active_count()) == before)
