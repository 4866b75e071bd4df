"""What is said where memory cannot be pinned: before the kernel is asked, and after it has refused."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest

from mooncake_rdma import pinning
from mooncake_rdma.pinning import advice, refusal

LIMIT = 8 << 20
MOST_REGIONS = 524_287


@pytest.fixture
def status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a process without the capability, whose limit is 8 MiB, of which 1 MiB is pinned."""
    monkeypatch.setattr(pinning.resource, "getrlimit", lambda _: (LIMIT, LIMIT))
    return _write(tmp_path, "0000000000000000")


def _write(folder: Path, capabilities: str) -> Path:
    status = folder / "status"
    status.write_text(f"Name:\tpython\nVmPin:\t    1024 kB\nCapEff:\t{capabilities}\n")
    return status


def test_what_is_more_than_the_limit_is_refused_before_with_the_fix(status: Path) -> None:
    assert refusal(7 << 20, status) is None
    said = refusal((7 << 20) + 1, status)
    assert said is not None
    assert "may lock 8MiB, and has pinned 1MiB of that" in said
    assert "ulimit -l unlimited; LimitMEMLOCK=infinity" in said


def test_who_has_the_capability_has_no_limit(status: Path) -> None:
    assert refusal(1 << 40, _write(status.parent, f"{1 << 14:016x}")) is None


def test_where_there_is_no_limit_nothing_is_refused_before(status: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning.resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, LIMIT))
    assert refusal(1 << 40, status) is None


def test_this_process_has_a_status() -> None:
    assert refusal(0) is None


def test_no_memory_within_a_limit_is_the_limit(status: Path) -> None:
    said = advice(errno.ENOMEM, MOST_REGIONS, status)
    assert "may lock 8MiB" in said
    assert "max_mr" not in said


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOSPC])
def test_no_memory_without_a_limit_is_the_devices(status: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(pinning.resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, LIMIT))
    said = advice(number, MOST_REGIONS, status)
    assert "(MKEY) more: it takes 524287 (max_mr)" in said
    assert "register fewer and larger regions" in said
    assert "ulimit" not in said


def test_what_cannot_be_pinned_is_memory_of_a_gpu(status: Path) -> None:
    assert "modprobe nvidia-peermem" in advice(errno.EFAULT, MOST_REGIONS, status)
    assert advice(errno.EINVAL, MOST_REGIONS, status) == ""
