"""The store benchmark: its processes, against implementations of a few lines that misbehave as told, and its sums."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mooncake_cli import exits, main
from mooncake_core.bench import machine, store
from mooncake_core.bench.movers import Measured as BaselineMeasured
from mooncake_core.bench.store import Measured, Side, StoreRun, StoreSettings, make_cell, measured, segment_bytes
from mooncake_core.bench.store_baseline import Baseline
from mooncake_core.bench.store_plan import StoreCase, StoreLoad, put_bytes
from mooncake_core.bench.store_processes import Interpreter, find_interpreter
from mooncake_core.errors import PluginUnavailable, StoreError, UsageError
from mooncake_core.testing.cluster import alive, wait_for

CASES = [StoreCase(4096), StoreCase(1000, 3)]

STORE = '''
"""Objects as files; `fault` says what goes wrong."""
import ctypes, os, pathlib
FOLDER, FAULT = pathlib.Path({folder!r}), {fault!r}

class MooncakeDistributedStore:
    def setup(self, host, metadata, segment_bytes, buffer_bytes, protocol, device, master):
        self.folder = FOLDER / master.replace(":", "-")
        self.folder.mkdir(exist_ok=True)
        with open(FOLDER / "setups", "a") as file:
            key_file = os.environ.get("MOONCAKE_KEY_FILE", "-")
            file.write(f"{{segment_bytes}} {{protocol}} {{os.environ['MC_FORCE_TCP']}} {{key_file}} {{os.getpid()}}\\n")
        return -600 if FAULT == "setup" else 0
    def register_buffer(self, address, size):
        return 0
    def unregister_buffer(self, address):
        return 0
    def put_from(self, key, address, size):
        if FAULT == "space":
            return -200
        (self.folder / key).write_bytes(ctypes.string_at(address, size))
        return 0
    def get_into(self, key, address, size):
        path = self.folder / key
        if not path.exists():
            return -704
        data = bytearray(path.read_bytes())
        if FAULT == "bytes":
            data[size // 2] ^= 1
        ctypes.memmove(address, bytes(data), size)
        return size
    def batch_put_from(self, keys, addresses, sizes):
        return [self.put_from(*one) for one in zip(keys, addresses, sizes)]
    def batch_get_into(self, keys, addresses, sizes):
        return [self.get_into(*one) for one in zip(keys, addresses, sizes)]
    def batch_is_exist(self, keys):
        return [int((self.folder / key).exists() or FAULT == "exist") for key in keys]
    def remove(self, key, force):
        (self.folder / key).unlink()
        return 0
    def close(self):
        print("a library may print", flush=True)
'''
MASTER = """
import os, socket, sys, time
ports = dict(argument[2:].split("=") for argument in sys.argv[1:])
open({pids!r}, "a").write(f"{{os.getpid()}}\\n")
listener = socket.create_server(("127.0.0.1", int(ports["rpc_port"])))
time.sleep(100)
"""

DROPIN = Path(__file__).parents[2] / "dropin"


def fake(folder: Path, fault: str = "") -> Path:
    """A virtual environment with such a `mooncake.store` and its master; returns its Python."""
    (folder / "bin").mkdir(parents=True)
    (folder / "lib" / "mooncake").mkdir(parents=True)
    (folder / "lib" / "mooncake" / "__init__.py").touch()
    (folder / "lib" / "mooncake" / "store.py").write_text(STORE.format(folder=str(folder), fault=fault))
    script(folder / "bin" / "python", f'PYTHONPATH={folder / "lib"}:$PYTHONPATH exec {sys.executable} "$@"')
    (folder / "master.py").write_text(MASTER.format(pids=str(folder / "pids")))
    script(folder / "bin" / "mooncake_master", f'exec {sys.executable} {folder / "master.py"} "$@"')
    return folder / "bin" / "python"


def script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run_of(python: Path, *, against: Path | None = None, pairs: int = 2, **load: Any) -> StoreRun:
    wanted = StoreLoad(**{"cases": CASES, "case_bytes": 1 << 15, "operations": ["put", "get", "exist"], **load})
    settings = StoreSettings(load=wanted, pairs=pairs, nodes=2, baseline_s=0.001)
    rival = Side(name="other", python=str(against), protocol="tcp") if against else None
    own = Side(name="own", python=str(python), protocol="shm")
    return StoreRun(settings, [own], rival, on_progress=lambda done: None)


def test_two_implementations_run_in_turn_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONCAKE_KEY_FILE", "of another cluster")
    ours, theirs = fake(tmp_path / "ours"), fake(tmp_path / "theirs")
    report = run_of(ours, against=theirs).execute()
    rows = [(cell.operation, cell.object_bytes, cell.batch) for cell in report.cells]
    assert rows == [("put", 4096, 1), ("get", 4096, 1), ("exist", 4096, 1), ("put", 1000, 3), ("get", 1000, 3)]
    for cell in report.cells:
        assert cell.against is not None
        assert cell.rate_ratio is not None
        assert cell.rate_ratio.count == 2
        assert cell.ours.latency_s is not None
        assert cell.ours.keys_per_s > 0
        assert (cell.of_socket is None) == (cell.of_memcpy is None) == (cell.operation == "exist")
    setups = [line.split() for line in (tmp_path / "ours" / "setups").read_text().splitlines()]
    assert [size for size, *_ in setups].count("0") == 4  # a writer and a reader in each of two runs
    assert len(setups) == 8  # and two segments
    assert {(protocol, force_tcp, key) for _, protocol, force_tcp, key, _ in setups} == {("shm", "0", "-")}
    pids = [int(pid) for *_, pid in setups] + [int(pid) for pid in (tmp_path / "theirs" / "pids").read_text().split()]
    assert not any(alive(pid) for pid in pids)


def test_more_processes_and_threads_share_the_work(tmp_path: Path) -> None:
    python = fake(tmp_path / "ours")
    run = run_of(python, pairs=1, processes=2, threads=2, operations=["mixed"], hits=0.5, zipf=1.0)
    report = run.execute()
    assert [cell.operation for cell in report.cells] == ["put", "mixed", "put", "mixed"]
    setups = (tmp_path / "ours" / "setups").read_text().splitlines()
    assert len(setups) == 2 + 2 + 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("bytes", "reader-0 says: .*-0 came back with other bytes"),
        ("space", "writer-0 says: put of .* answered -200, expected 0"),
        ("exist", "exist of .*-absent-1 answered 1, expected 0"),
        ("setup", "segment-0 says: setup at .* answered -600, expected 0"),
    ],
)
def test_what_an_implementation_does_wrong_ends_the_run(tmp_path: Path, fault: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        run_of(fake(tmp_path / "bad", fault), pairs=1).execute()


def test_a_process_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    python = fake(tmp_path / "bad")
    script(tmp_path / "bad" / "bin" / "mooncake_master", "echo no such device >&2; exit 3")
    with pytest.raises(StoreError, match="master ended\n  .*no such device"):
        run_of(python).execute()
    (tmp_path / "bad" / "lib" / "mooncake" / "store.py").unlink()
    script(tmp_path / "bad" / "bin" / "mooncake_master", f"exec {sys.executable} {tmp_path / 'bad' / 'master.py'} $@")
    with pytest.raises(PluginUnavailable, match="^/.* has no mooncake.store .*pip install"):
        run_of(python).execute()


def test_in_a_cluster_that_goes_on_nothing_is_left(tmp_path: Path) -> None:
    python = fake(tmp_path / "ours")
    load = StoreLoad(cases=CASES, case_bytes=1 << 15, operations=["mixed"])
    side = Side(name="own", python=str(python), protocol="tcp", master="127.0.0.1:5", key_file="its key")
    StoreRun(StoreSettings(load=load, pairs=1, baseline_s=0.001), [side], None, on_progress=lambda done: None).execute()
    assert list((tmp_path / "ours" / "127.0.0.1-5").iterdir()) == []
    assert not (tmp_path / "ours" / "pids").exists()
    setups = (tmp_path / "ours" / "setups").read_text()
    assert setups.count("0 tcp 1 its key ") == len(setups.splitlines()) == 2


def test_everything_ends_with_a_killed_bench(tmp_path: Path) -> None:
    python = fake(tmp_path / "ours")
    code = textwrap.dedent(f"""
        from mooncake_core.bench.store import Side, StoreSettings, clients
        from mooncake_core.bench.store_plan import StoreCase, StoreLoad
        side = Side(name="own", python={str(python)!r}, protocol="tcp")
        settings = StoreSettings(load=StoreLoad(cases=[StoreCase(1)]), pairs=1)
        with clients(side, settings):
            print("started", flush=True)
            input()
    """)
    bench = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert bench.stdin is not None
    assert bench.stdout is not None
    with bench.stdin, bench.stdout:
        assert bench.stdout.readline() == b"started\n"
        bench.send_signal(signal.SIGKILL)
        bench.wait()
    pids = [int(line.split()[-1]) for line in (tmp_path / "ours" / "setups").read_text().splitlines()]
    pids += [int(pid) for pid in (tmp_path / "ours" / "pids").read_text().split()]
    assert len(pids) == 4
    wait_for(lambda: not any(alive(pid) for pid in pids))


def test_threads_that_call_together_take_as_long_as_the_last_of_them() -> None:
    load = StoreLoad(cases=[StoreCase(10, 2)], threads=2, processes=2)
    planned = [[("put", [0, 1])], [("put", [2, 3])], [("get", [4, 5])], [("get", [6, -1])]]
    spans = [
        [[["put", 1.0, 2.0, 0]], [["put", 1.5, 5.0, 0]]],
        [[["get", 0.0, 0.5, 20]], [["get", 0.0, 1.0, 10]]],
    ]
    found = measured(load, StoreCase(10, 2), planned, spans)
    assert found.bytes_per_s == 40 / 4 + 30 / 1
    assert found.keys_per_s == 4 / 4 + 4 / 1
    assert sorted(found.seconds) == [0.5, 1.0, 1.0, 3.5]


def test_a_cell_compares_runs_pair_by_pair() -> None:
    def run(rate: float) -> Measured:
        return Measured(seconds=[1 / rate], bytes_per_s=rate, keys_per_s=10 * rate)

    def base(rate: float) -> Baseline:
        measured_ = BaselineMeasured(moved_bytes=int(rate), duration_s=1.0, latencies_s=[0.5])
        return Baseline(socket=measured_, memcpy=measured_)

    cell = make_cell(
        "own", "get", CASES[0], [run(2), run(8), run(4)], [run(1), run(2), run(2)], [base(4), base(8), base(8)], seed=0
    )
    assert cell.rate_ratio is not None
    assert (cell.rate_ratio.median, cell.rate_ratio.low, cell.rate_ratio.high) == (2, 2, 4)
    assert cell.p50_ratio is not None
    assert cell.p50_ratio.median == 0.5
    assert (cell.ours.bytes_per_s, cell.socket_bytes_per_s, cell.socket_p50_s) == (4, 8, 0.5)
    assert cell.of_memcpy is not None
    assert cell.of_memcpy.median == 0.5
    alone = make_cell("own", "exist", CASES[0], [run(2)], [], [], seed=0)
    assert (alone.against, alone.rate_ratio, alone.of_socket, alone.memcpy_bytes_per_s) == (None, None, None, None)


def test_segments_hold_what_is_put_and_a_machine_without_the_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = StoreSettings(load=StoreLoad(cases=CASES), pairs=1, nodes=2)
    assert 2 * segment_bytes(settings) > put_bytes(settings.load)
    monkeypatch.setattr(store, "available_memory_bytes", lambda: 1 << 20)
    with pytest.raises(
        UsageError, match=r"expected .* of memory for segments .* has 1MiB available: lower --case-bytes"
    ):
        store.check_memory(settings, starts_segments=True)


def test_a_folder_of_a_virtual_environment_is_as_good_as_its_python(tmp_path: Path) -> None:
    python = fake(tmp_path / "venv")
    assert find_interpreter(str(tmp_path / "venv")).python == find_interpreter(str(python)).python == str(python)
    with pytest.raises(UsageError, match="expected a Python, or a folder of a virtual environment"):
        find_interpreter(str(tmp_path / "nothing"))


def test_another_interpreter_finds_its_own_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert Interpreter(sys.executable).environ["PYTHONPATH"] == "/mine"
    assert "PYTHONPATH" not in Interpreter("/other/bin/python").environ


def test_a_busy_machine_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([[0] * 8, [50, 0, 0, 50, 0, 0, 0, 0], [0] * 8, [1, 0, 0, 95, 4, 0, 0, 0]])
    monkeypatch.setattr(machine, "_times", lambda: next(times))
    assert "50% of the" in machine.busy_warning(0)
    assert machine.busy_warning(0) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "4KiBx"], "expected a size like 1MiB"),
        (["--busy-poll", "0,100"], "expected a duration of at most 10ms, as 100us, got 100s"),
        (["--at-least", "1"], "--at-least belongs to --against"),
        (["--operations", "put,delete"], "'delete' is not one of"),
        (["--against", "/no/such/python"], "expected a Python, or a folder of a virtual environment"),
    ],
)
def test_wrong_usage_is_said_so(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", "store", *arguments]) == exits.USAGE
    assert message in capsys.readouterr().err


def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """`mooncake bench store`, both sides fakes; ours has a real master."""
    ours, theirs = fake(tmp_path / "ours"), fake(tmp_path / "theirs")
    monkeypatch.setattr(sys, "executable", str(ours))
    load = ["--cases", "4KiB,1000x3", "--case-bytes", "32KiB", "--pairs", "1"]
    return main.run(["bench", "store", *load, "--against", str(theirs), *options])


def test_the_command_prints_a_table_and_fails_where_a_ratio_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, monkeypatch, "--at-least", "1e9") == exits.FAILED
    printed = capsys.readouterr()
    header, *rows = [line.split("\t") for line in printed.out.splitlines() if "\t" in line]
    assert header[:3] == ["side", "", "objects"]
    assert [row[1:3] for row in rows[:3]] == [["put", "4KiB"], ["get", "4KiB"], ["exist", "1000 keys"]]
    assert all(len(row) == len(header) for row in rows)
    assert "mooncake tcp put 4KiB: expected at least 1e+09 times, found " in printed.err


def test_the_command_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--protocol", "tcp,shm", "--out", str(out), "--json", "--at-least", "0")
    assert command(tmp_path, monkeypatch, *options) == exits.DONE
    report = json.loads((out / "report.json").read_text())
    assert [cell["side"] for cell in report["cells"]] == ["mooncake tcp"] * 5 + ["mooncake shm"] * 5
    assert json.loads(capsys.readouterr().out)["cells"] == report["cells"]
    assert {path.name for path in out.iterdir()} == {"report.json", "put.png", "get.png"}


def test_this_project_is_measured_through_its_own_api(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(DROPIN), os.environ.get("PYTHONPATH", "")]))
    load = ["--cases", "4KiB,64KiBx4", "--case-bytes", "256KiB", "--pairs", "1", "--operations", "get,exist,mixed"]
    assert main.run(["bench", "store", *load, "--protocol", "shm", "--json"]) == exits.DONE
    cells = json.loads(capsys.readouterr().out)["cells"]
    expected = [("put", 1), ("get", 1), ("mixed", 1), ("exist", 1), ("put", 4), ("get", 4), ("mixed", 4)]
    assert [(cell["operation"], cell["batch"]) for cell in cells] == expected
    assert all(cell["ours"]["keys_per_s"] > 0 for cell in cells)
