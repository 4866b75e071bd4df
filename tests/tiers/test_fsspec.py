"""The fsspec tier keeps the contract in a folder, in memory, and on S3 over HTTP."""

from __future__ import annotations

import errno
import importlib.util
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest

from mooncake_core.errors import ConfigError
from mooncake_core.store.tiers.contract import TierSettings
from mooncake_core.testing.cluster import wait_for
from mooncake_core.testing.tier_contract import OWNER, TierContract, listed, new, reads
from mooncake_object import FsspecTier
from mooncake_object.places import Elsewhere

HAS_S3 = all(importlib.util.find_spec(name) for name in ("moto", "s3fs", "flask"))


def flip(filesystem: Any, root: str, key: str) -> None:
    """Changes a byte in the middle of the one object that holds a key."""
    for path in filesystem.find(root):
        content = bytearray(filesystem.cat_file(path))
        if key.encode() in content[:200]:
            content[20_000] ^= 1
            filesystem.pipe_file(path, bytes(content))


@contextmanager
def no_growth() -> Iterator[None]:
    """Files of this process stay below 100 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFolder(TierContract):
    tier = FsspecTier

    def damage(self, place: str, key: str) -> None:
        flip(fsspec.filesystem("file"), place, key)

    def failing(self, place: str) -> AbstractContextManager[None]:
        return no_growth()

    def test_a_file_that_is_not_whole_is_nobodys(self, place: str) -> None:
        tier = self.open(place)
        tier.write([new("k")])
        tier.close()
        (file,) = (path for path in Path(place).rglob("*") if path.is_file() and path.name != "owner.lock")
        left = file.with_name(file.name + ".new")
        left.write_bytes(b"half")
        tier = self.open(place)
        assert not left.exists()
        assert [about.key for about in listed(tier)] == ["k"]
        tier.close()

    def test_of_two_files_of_a_key_the_newer_one_stays(self, place: str) -> None:
        tier = self.open(place)
        tier.write([new("k", 1)])
        (old,) = (path for path in Path(place).rglob("*") if path.is_file() and path.name != "owner.lock")
        content = old.read_bytes()
        tier.write([new("k", 2)])
        tier.close()
        old.write_bytes(content)  # killed before it was deleted
        tier = self.open(place)
        assert [about.allocation_id for about in listed(tier)] == [2]
        assert reads(tier, new("k", 2))
        assert not old.exists()
        tier.close()

    def test_nobody_takes_the_space_that_is_to_be_left_to_others(self, place: str) -> None:
        tier = self.open(place, reserve_bytes=1 << 60)
        assert tier.write([new("k")]).stored == [False]
        assert "free space" in tier.usage().trouble
        tier.close()

    def test_another_format_is_refused_with_what_to_do(self, place: str) -> None:
        self.open(place).close()
        Path(place, OWNER, "v2").mkdir()
        with pytest.raises(ConfigError, match="expected format 1 .* found v2"):
            self.open(place)


class TestMemoryFileSystem(TierContract):
    tier = FsspecTier
    exclusive = False  # an object store has no locks

    @pytest.fixture
    def place(self, tmp_path: Path) -> str:
        return f"memory:/{tmp_path}"

    def damage(self, place: str, key: str) -> None:
        flip(fsspec.filesystem("memory"), place.removeprefix("memory:/"), key)

    def failing(self, place: str) -> AbstractContextManager[None]:
        return failing_requests(pytest.MonkeyPatch())


@contextmanager
def failing_requests(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """An object store that has no room left."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with patch.context() as inner:
        inner.setattr(Elsewhere, "write", fail)
        yield


def test_a_url_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="a URL that fsspec knows"):
        FsspecTier(TierSettings(owner="n", path="nowhere://x", capacity_bytes=1))


def test_a_place_that_cannot_be_listed_is_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> list[str]:
        raise RuntimeError("EndpointConnectionError")

    monkeypatch.setattr(Elsewhere, "formats", fail)
    with pytest.raises(OSError, match="EndpointConnectionError"):
        FsspecTier(TierSettings(owner="n", path="memory://x", capacity_bytes=1))


def test_after_kill_9_every_file_is_whole(tmp_path: Path) -> None:
    script = """
import itertools, sys
from mooncake_core.store.tiers.contract import TierSettings
from mooncake_core.testing.tier_contract import new
from mooncake_object import FsspecTier
tier = FsspecTier(TierSettings(owner=sys.argv[1], path=sys.argv[2], capacity_bytes=1 << 30, reserve_bytes=0))
for number in itertools.count(1):
    print(number, tier.write([new(f"k{number}", number, 100_000)]).stored, flush=True)
"""
    command = [sys.executable, "-c", script, OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(30)]
        os.kill(process.pid, signal.SIGKILL)
        said += process.stdout.readlines()
    tier = FsspecTier(TierSettings(owner=OWNER, path=str(tmp_path), capacity_bytes=1 << 30, reserve_bytes=0))
    found = listed(tier)
    assert {about.key for about in found} >= {f"k{line.split()[0]}" for line in said if line.endswith("[True]\n")}
    assert all(reads(tier, new(about.key, about.allocation_id, about.size_bytes)) for about in found)
    tier.close()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            wait_for(lambda: httpx.get(url).status_code == 200)
            yield url
        finally:
            process.terminate()


SERVER = """
import time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not HAS_S3, reason="needs moto, flask and s3fs: pip install mooncake-toolkit[dev]")
class TestS3(TierContract):
    tier = FsspecTier
    num_writes = 8
    exclusive = False

    @pytest.fixture
    def place(self, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setattr(type(self), "options", {"endpoint_url": s3})
        self.filesystem = fsspec.filesystem("s3", endpoint_url=s3, skip_instance_cache=True)
        bucket = f"b{abs(hash(tmp_path))}"
        self.filesystem.mkdir(bucket)
        return f"s3://{bucket}/cache"

    def damage(self, place: str, key: str) -> None:
        self.filesystem.invalidate_cache()
        flip(self.filesystem, place, key)

    def failing(self, place: str) -> AbstractContextManager[None]:
        return failing_requests(pytest.MonkeyPatch())
