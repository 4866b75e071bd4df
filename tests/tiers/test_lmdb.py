"""The lmdb tier keeps the contract, also through kill -9 and on a disk that is full."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import lmdb
import msgspec
import pytest
import xxhash

from mooncake_core.errors import ConfigError
from mooncake_core.store.tiers.contract import Tier, TierKey, TierSettings
from mooncake_core.testing.tier_contract import CAPACITY_BYTES, OWNER, TierContract, content, listed, new, reads
from mooncake_nvme import LmdbTier
from mooncake_nvme.data_file import DataFile, places, runs

WRITER = """
import itertools, sys
from mooncake_core.store.tiers.contract import TierSettings
from mooncake_core.testing.tier_contract import new
from mooncake_nvme import LmdbTier
from mooncake_nvme.data_file import DataFile, places, runs
tier = LmdbTier(TierSettings(owner=sys.argv[1], path=sys.argv[2], capacity_bytes=16 << 20, reserve_bytes=0))
for number in itertools.count(int(sys.argv[3])):
    items = [new(f"k{number}-{part}", number, 40_000 + part) for part in range(4)]
    tier.remove([new(f"k{number - 9}-0", number - 9).about.name])
    written = tier.write(items)
    dropped = " ".join(f"{key}/{allocation}" for key, allocation in written.dropped)
    print(number, *(int(stored) for stored in written.stored), dropped, flush=True)
"""


def data_of(place: str) -> Path:
    return Path(place, OWNER, "objects.data")


def bytes_on_disk(place: str) -> int:
    return sum(path.stat().st_size for path in Path(place, OWNER).iterdir() if path.name != "lock.mdb")


@contextmanager
def no_growth(path: Path) -> Iterator[None]:
    """Files of this process cannot grow: the error of a real write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestLmdb(TierContract):
    tier = LmdbTier

    def damage(self, place: str, key: str) -> None:
        file = data_of(place)
        data = bytearray(file.read_bytes())
        at = data.find(content(key, 1, 50_000)[20_000:20_064])
        assert at > 0
        data[at] ^= 1
        file.write_bytes(data)

    def failing(self, place: str) -> AbstractContextManager[None]:
        return no_growth(data_of(place))

    def test_the_file_stays_within_its_capacity_with_objects_of_all_sizes(self, place: str) -> None:
        tier = self.open(place)
        for number in range(200):
            assert tier.write([new(f"k{number}", number, 1 + (number * 7919) % 600_000)]).stored == [True]
            if number % 5 == 0:
                tier.remove([TierKey(f"k{number - 3}", number - 3)])
            assert bytes_on_disk(place) <= CAPACITY_BYTES
        assert tier.usage().used_bytes > CAPACITY_BYTES // 2
        tier.close()

    def test_many_small_objects_fill_the_index_and_the_oldest_make_room(self, place: str) -> None:
        tier = self.open(place)
        there: list[TierKey] = []
        for start in range(0, 3_000, 500):
            items = [new(f"{'long' * 250}{number}", number, 10) for number in range(start, start + 500)]
            written = tier.write(items)
            assert all(written.stored)
            there += [item.about.name for item in items]
            assert set(written.dropped) == set(there[: len(written.dropped)])
            del there[: len(written.dropped)]
        assert 500 < len(there) < 3_000, "it was not filled"
        assert [about.name for about in listed(tier)] == sorted(there)
        assert reads(tier, items[-1])
        tier.close()

    def test_a_capacity_that_was_lowered_drops_what_lies_beyond_it(self, place: str) -> None:
        tier = self.open(place, capacity_bytes=64 << 20)
        items = [new(f"k{number}", number, 1 << 20) for number in range(50)]
        tier.write(items)
        tier.close()
        tier = self.open(place)
        assert bytes_on_disk(place) <= CAPACITY_BYTES
        left = {about.key for about in listed(tier)}
        assert left == {f"k{number}" for number in range(12)}
        more = [new(f"more{number}", 100 + number, 1 << 20) for number in range(3)]
        assert tier.write(more).stored == [True] * 3
        found = [item for item in items if reads(tier, item)]
        assert {item.about.key for item in found} == {f"k{number}" for number in range(3, 12)}
        assert all(reads(tier, item) for item in more)
        tier.close()

    def test_a_data_file_that_somebody_deleted_costs_its_objects(self, place: str) -> None:
        tier = self.open(place)
        tier.write([new("k")])
        tier.close()
        data_of(place).unlink()
        tier = self.open(place)
        assert not reads(tier, new("k"))
        assert listed(tier) == []
        assert tier.write([new("k")]).stored == [True]
        assert reads(tier, new("k"))
        tier.close()

    def test_a_sector_that_cannot_be_read_is_a_miss_and_nothing_else(
        self, opened: Tier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        items = [new("bad", 1), new("good", 2)]
        opened.write(items)

        def fail(*_: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as disk:
            disk.setattr(os, "preadv", fail)
            assert not reads(opened, items[0])
        assert reads(opened, items[1])
        assert opened.usage().trouble == ""

    def test_nobody_takes_the_space_that_is_to_be_left_to_others(self, place: str) -> None:
        tier = self.open(place, reserve_bytes=1 << 60)
        assert tier.write([new("k")]).stored == [False]
        assert "free space" in tier.usage().trouble
        tier.close()

    def test_another_format_is_refused_with_what_to_do(self, place: str) -> None:
        self.open(place).close()
        environment = lmdb.open(str(Path(place, OWNER)), max_dbs=4)
        meta = environment.open_db(b"meta")
        with environment.begin(write=True) as txn:
            txn.put(b"format", msgspec.msgpack.encode(2), db=meta)
        environment.close()
        with pytest.raises(ConfigError, match="expected format 1 .* found 2, which a newer version"):
            self.open(place)
        with environment_of(place) as environment, environment.begin(write=True) as txn:
            txn.delete(b"format", db=environment.open_db(b"meta", txn))
        with pytest.raises(ConfigError, match="something else wrote it"):
            self.open(place)

    def test_settings_that_make_no_sense_are_refused(self, place: str) -> None:
        with pytest.raises(ConfigError, match="at least 8MiB"):
            self.open(place, capacity_bytes=1 << 20)
        with pytest.raises(ConfigError, match="no options for tier lmdb, got color"):
            LmdbTier(TierSettings(owner="n", path=place, capacity_bytes=1 << 30, options={"color": 1}))

    def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError):
            self.open(str(tmp_path / "file"))


@contextmanager
def environment_of(place: str) -> Iterator[lmdb.Environment]:
    environment = lmdb.open(str(Path(place, OWNER)), max_dbs=4)
    yield environment
    environment.close()


def test_after_kill_9_everything_written_is_there_and_no_byte_is_wrong(tmp_path: Path) -> None:
    there: dict[str, int] = {}
    for round_ in range(3):
        start = 1 + 1000 * round_
        command = [sys.executable, "-c", WRITER, OWNER, str(tmp_path), str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = list(itertools.islice(process.stdout, (85, 30, 40)[round_]))
            os.kill(process.pid, signal.SIGKILL)
            lines += process.stdout.read().splitlines()
        for line in lines:
            note(line, there)
        tier = LmdbTier(TierSettings(owner=OWNER, path=str(tmp_path), capacity_bytes=CAPACITY_BYTES, reserve_bytes=0))
        found = {about.key: about for about in listed(tier)}
        assert there.keys() - found.keys() <= unsaid(lines, there), "what was written is not there"
        for key, about in found.items():
            assert reads(tier, new(key, about.allocation_id, about.size_bytes)), f"{key} is listed and cannot be read"
        there = {key: about.allocation_id for key, about in found.items()}
        tier.close()
    assert len(there) > 100


def note(line: str, there: dict[str, int]) -> None:
    """What a writer says is there, and what is there no more."""
    number, *rest = line.split()
    there.pop(f"k{int(number) - 9}-0", None)
    there.update({f"k{number}-{part}": int(number) for part in range(4) if rest[part] == "1"})
    for name in rest[4:]:
        there.pop(name.partition("/")[0], None)


def unsaid(lines: list[str], there: dict[str, int]) -> set[str]:
    """What the batch may have removed or dropped whose line was not written any more."""
    number = int(lines[-1].split()[0]) + 1
    oldest = sorted(there, key=lambda key: (there[key], key))
    return {f"k{number - 9}-0", *oldest[:8]}


@pytest.mark.parametrize("count", [1, 2, 700])
def test_pieces_are_written_one_behind_the_other(tmp_path: Path, count: int) -> None:
    file = DataFile(tmp_path / "data")
    pieces = [os.urandom(1 + number % 97) for number in range(count)]
    file.write(13, [memoryview(piece) for piece in pieces])
    whole = b"".join(pieces)
    target = bytearray(len(whole))
    assert file.read(13, memoryview(target), xxhash.xxh3_64_intdigest(whole))
    assert target == whole
    assert not file.read(14, memoryview(target), xxhash.xxh3_64_intdigest(whole))
    file.close()


def test_places_go_round_and_runs_lie_together() -> None:
    lengths = [30, 30, 30, 20]
    offsets = places(50, lengths, 100)
    assert offsets == [50, 0, 30, 60]
    assert list(runs(offsets, lengths)) == [range(0, 1), range(1, 4)]
    assert list(runs([], [])) == []
