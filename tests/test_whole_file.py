"""Files that are written whole or not at all, where there is no room for them."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mooncake_cli import console, exits, main
from mooncake_core import whole_file
from mooncake_core.bench import outputs
from mooncake_core.bench.plots import plot_cdf


@contextmanager
def no_room() -> Iterator[None]:
    """Files can be made meanwhile, and get no byte: as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("arguments", [["config", "init"], ["auth", "init", "--file"]])
def test_a_command_names_the_file_that_it_had_no_room_for_and_leaves_none(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new"
    with no_room():
        assert main.run([*arguments, str(path)]) == exits.FAILED
    assert capsys.readouterr().err == f"error: File too large: {path}\n"
    assert not path.exists()
    assert main.run([*arguments, str(path)]) == exits.DONE  # once there is room
    assert path.stat().st_size > 0


def plot(path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_cdf(path, "a", "b", {"c": [1.0]})


def save(path: Path) -> None:
    outputs.save(path, [outputs.Output(index=0, prompt_hash="", text="", token_ids=[], error="")])


@pytest.mark.parametrize(
    "write", [lambda path: console.json_file(path, {}), plot, save], ids=["report", "plot", "outputs"]
)
def test_what_a_benchmark_writes_is_named_and_not_left_half(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "result"
    write(path)  # what it imports is there from now on
    path.unlink()
    with no_room(), pytest.raises(OSError, match="File too large") as caught:
        write(path)
    assert caught.value.filename == str(path)
    assert not path.exists()


def test_what_is_no_file_is_written_to_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "full"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        whole_file.write(path, b"x")
    assert caught.value.filename == str(path)
    assert path.is_symlink()


def test_what_was_there_stays_where_there_is_no_room_for_the_new(tmp_path: Path) -> None:
    path, link = tmp_path / "kept", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    with no_room(), pytest.raises(OSError, match="File too large") as caught:
        whole_file.write(link, b"new")
    assert (path.read_bytes(), caught.value.filename) == (b"old", str(link))
    assert sorted(tmp_path.iterdir()) == [path, link]
    whole_file.write(link, b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777, link.is_symlink()) == (b"new", 0o640, True)
