"""The baseline of RDMA, with programs that say what perftest's say."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooncake_core.bench.movers import Load, PerftestMover, measure
from mooncake_core.errors import TransferError
from mooncake_core.transfer.contract import Kind

SAYS = """#!/bin/sh
# The server has no host at the end of its arguments; the client fails until it is there.
for last; do :; done
if [ "$last" != 127.0.0.1 ]; then touch {folder}/listens; sleep 5; exit 0; fi
[ -e {folder}/listens ] || exit 1
echo ' #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]'
echo ' 1048576    64             120.50             100.00               0.000100'
"""


def _mover(kind: Kind = Kind.WRITE) -> PerftestMover:
    return PerftestMover(Load(kind=kind, block_bytes=1 << 20, checksum=False), memoryview(bytearray(1 << 20)), 1)


def _program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(("kind", "program"), [(Kind.WRITE, "ib_write_bw"), (Kind.READ, "ib_read_bw")])
def test_what_the_client_says_is_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, program: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    _program(tmp_path, program, SAYS.format(folder=tmp_path))
    measured = measure(_mover(kind), 0.1)
    assert measured.moved_bytes == 64 << 20
    assert measured.bytes_per_s == pytest.approx(100 << 20)


def test_a_program_that_fails_is_an_error_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    _program(tmp_path, "ib_write_bw", "#!/bin/sh\necho ' IB device not found' >&2\nexit 1\n")
    with pytest.raises(TransferError, match="ib_write_bw failed: IB device not found"):
        measure(_mover(), 0.1)


def test_a_rate_of_nothing_is_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    rate = "'$([ -e {folder}/again ] && echo 100.00 || echo 0.00)'"
    says = SAYS.replace("100.00", rate) + "touch {folder}/again\n"
    _program(tmp_path, "ib_write_bw", says.format(folder=tmp_path))
    assert measure(_mover(), 0.1).bytes_per_s == pytest.approx(100 << 20)
    _program(tmp_path, "ib_write_bw", SAYS.replace("100.00", "0.00").format(folder=tmp_path))
    with pytest.raises(TransferError, match="measured 0 MB/s 5 times"):
        measure(_mover(), 0.1)


def test_both_programs_have_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not PerftestMover.is_available()
    for program in PerftestMover.PROGRAMS.values():
        _program(tmp_path, program, "")
    assert PerftestMover.is_available()
