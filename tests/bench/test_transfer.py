"""The transfer benchmark: its arithmetic, its processes, and one small real run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from mooncake_cli import exits, main
from mooncake_cli.commands import bench_transfer
from mooncake_core.bench import engine_compare, transfer
from mooncake_core.bench.host_steps import Host, sum_up
from mooncake_core.bench.movers import RAW_BUFFER_BYTES, CopyMover, Load, Measured, Mover, SocketMover, measure
from mooncake_core.bench.store_processes import END_S, Process
from mooncake_core.bench.transfer import (
    LaneBytes,
    TransferReport,
    TransferRun,
    TransferSettings,
    make_cell,
    region_bytes,
)
from mooncake_core.bench.transfer_target import Boot, Ready, serve_raw
from mooncake_core.errors import PluginUnknown, TransferError, UsageError
from mooncake_core.testing.cluster import alive, wait_for
from mooncake_core.transfer.contract import Kind
from mooncake_tcp.frames import SOCKET_BUFFER_BYTES

SMALL: dict[str, Any] = {"sizes": [4096], "memory_bytes": 1 << 20, "seconds": 0.005, "pairs": 2}


def load_of(kind: Kind = Kind.READ, *, block_bytes: int = 4, checksum: bool = False) -> Load:
    return Load(kind=kind, block_bytes=block_bytes, checksum=checksum)


def run_of(bytes_per_s: int, latency_s: float = 0.5) -> Measured:
    return Measured(moved_bytes=bytes_per_s * 2, duration_s=2.0, latencies_s=[latency_s])


def test_a_mover_walks_through_its_threads_shares_and_copies_both_ways() -> None:
    memory, other = memoryview(bytearray(b"a" * 16)), memoryview(bytearray(range(16)))
    reader = CopyMover(load_of(), memory, 2, other=other)
    assert reader.step(1) == 4
    assert bytes(memory) == b"a" * 8 + bytes(range(8, 12)) + b"a" * 4
    for thread in (0, 0, 1, 0, 1):
        reader.step(thread)
    assert bytes(memory) == bytes(range(16))
    memory[:] = b"b" * 16
    CopyMover(load_of(Kind.WRITE, checksum=True), memory, 2, other=other).step(0)
    assert bytes(other) == b"b" * 4 + bytes(range(4, 16))


def test_a_mover_without_room_for_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="expected room for a block of 16 per thread, got 16 bytes"):
        CopyMover(load_of(block_bytes=16), memoryview(bytearray(16)), 2, other=memoryview(bytearray(16)))


class Sleeper(Mover):
    """Takes 10 ms for 100 bytes."""

    steps = 0

    def step(self, thread: int) -> int:
        time.sleep(0.01)
        self.steps += 1
        return 100


class Failing(Mover):
    def step(self, thread: int) -> int:
        raise TransferError("the step failed")


def test_a_measurement_counts_what_all_threads_moved() -> None:
    found = measure(Sleeper(load_of(), memoryview(bytearray(16)), 2), 0.1)
    assert found.moved_bytes == 100 * len(found.latencies_s)
    assert min(found.latencies_s) >= 0.01
    assert found.duration_s >= 0.1
    assert 4 <= len(found.latencies_s) <= 22
    assert found.bytes_per_s == pytest.approx(found.moved_bytes / found.duration_s)


def test_a_measurement_of_no_time_makes_a_step_in_each_thread() -> None:
    mover = Sleeper(load_of(), memoryview(bytearray(16)), 2)
    assert measure(mover, 0.0).moved_bytes == 200


@pytest.mark.parametrize("kind", list(Kind))
def test_the_socket_baseline_has_a_batch_in_flight_and_the_buffers_of_the_transport(kind: Kind) -> None:
    memory, other = memoryview(bytearray(b"a" * 16)), memoryview(bytearray(range(16)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        mover = SocketMover(load_of(kind), memory, 1, host="127.0.0.1", port=listener.getsockname()[1], batch=4)
        connection, _ = listener.accept()
        server = threading.Thread(target=serve_raw, args=(connection, other))
        server.start()
        assert mover.step(0) == 16
        (ours,) = mover._sockets
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * RAW_BUFFER_BYTES  # the kernel doubles it
        mover.close()
        server.join()
    assert bytes(memory) == bytes(other) == (b"a" * 16 if kind is Kind.WRITE else bytes(range(16)))
    assert RAW_BUFFER_BYTES == SOCKET_BUFFER_BYTES


def test_a_failing_step_fails_the_measurement() -> None:
    with pytest.raises(TransferError, match="the step failed"):
        measure(Failing(load_of(), memoryview(bytearray(16)), 2), 0.1)


def test_a_cell_compares_pair_by_pair_with_the_like_baseline_and_the_raw_one() -> None:
    runs = {
        (False, True): [run_of(80), run_of(8)],
        (False, False): [run_of(100), run_of(10)],
        (True, True): [run_of(40), run_of(4)],
        (True, False): [run_of(50), run_of(5)],
    }
    cell = make_cell("tcp", Kind.READ, 4096, True, "socket", runs, batch=4, seed=0)
    assert cell.of_baseline is not None
    assert cell.of_raw is not None
    assert (cell.bytes_per_s, cell.baseline_bytes_per_s) == (22, 27.5)
    assert (cell.of_baseline.median, cell.of_raw.median) == (pytest.approx(0.8), pytest.approx(0.4))
    only_summed = {key: found for key, found in runs.items() if key[0]}
    assert make_cell("tcp", Kind.READ, 4096, True, "socket", only_summed, batch=4, seed=0).of_raw is None


def test_regions_hold_what_is_under_way_and_fit_in_the_machine() -> None:
    settings = TransferSettings(transports=["tcp"], sizes=[1 << 20], threads=3, batch=5)
    assert region_bytes(settings) >= 15 << 20
    with pytest.raises(
        UsageError, match="expected room for threads .or connections. x batch blocks of 1MiB, 15MiB, got 8MiB"
    ):
        region_bytes(msgspec.structs.replace(settings, memory_bytes=8 << 20))
    with pytest.raises(UsageError, match="lower --memory"):
        region_bytes(msgspec.structs.replace(settings, memory_bytes=1 << 50))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "0"], "expected blocks of 1 byte or more"),
        (["--sizes", "big"], "expected a size like 4GiB, 512MB or 65536, got 'big'"),
        (["--sizes", ","], "expected values separated by commas"),
        (["--busy-poll", "11ms"], "expected a duration of at most 10ms, as 100us, got 11ms"),
        (["--direction", "up"], "'up' is not one of 'read', 'write'"),
        (["--pairs", "9"], "9 is not in the range x>=10"),
        (["--transport", "no-such"], "no transport called 'no-such' is installed"),
        (
            ["--sizes", "64MiB", "--memory", "1MiB"],
            "raise --memory, or lower --batch, --threads, --connections or --sizes",
        ),
    ],
)
def test_wrong_usage_is_said_so(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", "transfer", *arguments]) == exits.USAGE
    assert message in capsys.readouterr().err


def test_bytes_that_do_not_arrive_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mooncake_core.transfer.local.copy", lambda pieces, memories, write: None)
    with pytest.raises(TransferError, match="local: the bytes read are not the bytes written"):
        TransferRun(TransferSettings(transports=["local"], **SMALL), lambda done: None).execute()


def test_what_is_not_available_is_skipped_unless_nothing_is_left() -> None:
    done: list[int] = []
    settings = TransferSettings(transports=["no-such", "local"], **SMALL)
    report = TransferRun(settings, done.append).execute()
    assert list(report.skipped) == ["no-such"]
    assert "is installed" in report.skipped["no-such"]
    assert {cell.transport for cell in report.cells} == {"local"}
    assert (done, report.unfinished) == ([1, 2, 3, 4], 0)
    with pytest.raises(PluginUnknown):
        TransferRun(TransferSettings(transports=["no-such"], **SMALL), done.append).execute()


def test_a_real_run_over_every_transport(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["bench", "transfer", "--sizes", "16KiB", "--memory", "1MiB", "--seconds", "2ms", "--out", str(tmp_path)]
    assert main.run([*command, "--json"]) == exits.DONE
    report = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    rows = {(cell["transport"], cell["kind"], cell["checksum"]): cell for cell in report["cells"]}
    names = [name for name in ("tcp", "shm", "local") if name not in report["skipped"]]
    assert set(rows) == {(name, kind, on) for name in names for kind in ("read", "write") for on in (False, True)}
    assert {cell["transport"]: cell["baseline"] for cell in report["cells"]}["tcp"] == "socket"
    assert rows["local", "read", True]["baseline"] == "memcpy"
    for cell in report["cells"]:
        assert cell["bytes_per_s"] > 0
        assert cell["of_baseline"]["count"] == 10
        assert cell["latency_s"]["count"] >= 20  # two threads, ten measurements


def test_a_miss_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "transfer", "--transport", "local", "--sizes", "4KiB", "--memory", "1MiB", "--seconds", "1ms"]
    command += ["--direction", "read", "--checksum", "on"]
    assert main.run([*command, "--at-least", "0"]) == exits.DONE
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split("\t")[:4] == ["local", "read", "4KiB", "on"]
    assert main.run([*command, "--at-least", "1000"]) == exits.FAILED
    assert "local read 4KiB with checksum: expected at least 1000 of the memcpy" in capsys.readouterr().err


def test_the_target_ends_when_its_parent_does() -> None:
    boot = msgspec.json.encode(Boot(transports=["tcp"], region_bytes=1 << 20)).decode()
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'mooncake_core.bench.transfer_target'], stdin=subprocess.PIPE)\n"
        f"child.stdin.write({boot!r}.encode() + b'\\n'); child.stdin.flush()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid, ready = None, None
    while pid is None or ready is None:  # both processes print to one pipe, in any order
        line = parent.stdout.readline()
        assert line
        if line.startswith(b"{"):
            ready = msgspec.json.decode(line, type=Ready)
        else:
            pid = int(line)
    assert ready.segment.owner == "bench-target"
    os.kill(pid, signal.SIGINT)  # a terminal sends it to both
    time.sleep(0.1)
    assert alive(pid)
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(pid))
    parent.stdout.close()


def test_an_interrupt_prints_the_rows_that_are_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def counter(total: int, what: str) -> Callable[[int], None]:
        def show(done: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        return show

    monkeypatch.setattr("mooncake_cli.progress.counter", counter)
    command = ["bench", "transfer", "--transport", "tcp", "--sizes", "4KiB,8KiB", "--memory", "1MiB"]
    assert main.run([*command, "--seconds", "1ms"]) == exits.INTERRUPTED
    printed = capsys.readouterr()
    rows = [line.split("\t") for line in printed.out.splitlines() if line.startswith("tcp")]
    assert [row[2] for row in rows] == ["4KiB", "4KiB", "8KiB"]
    assert "not measured: 5 rows" in printed.out
    assert "interrupted" in printed.err


def test_nobody_moves_any_more_after_an_interrupted_measurement() -> None:
    mover = Sleeper(load_of(), memoryview(bytearray(16)), 2)
    threading.Timer(0.2, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        measure(mover, 60.0)
    steps = mover.steps
    time.sleep(0.05)
    assert mover.steps == steps > 0


def test_the_cache_size_is_a_size() -> None:
    assert transfer.last_level_cache_bytes() >= 1 << 18


@contextlib.contextmanager
def running_target(*options: str) -> Iterator[dict[str, Any]]:
    """`mooncake bench transfer --target`, and what it says of itself."""
    command = [sys.executable, "-m", "mooncake_cli.main", "bench", "transfer", "--target", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            text = ""
            while not text.rstrip().endswith("}"):
                text += process.stdout.readline()
            yield json.loads(text)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == exits.DONE


def test_an_initiator_measures_against_a_target_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with running_target("--memory", "1MiB", "--transport", "tcp,shm") as target:
        assert (target["transports"], target["memory_bytes"]) == (["tcp", "shm"], 1 << 20)
        options = ["--sizes", "4KiB", "--direction", "read", "--checksum", "off", "--seconds", "5ms", "--json"]
        options += ["--busy-poll", "50us"]
        assert main.run(["bench", "transfer", "--initiator", target["address"], *options]) == exits.DONE
        said = capsys.readouterr()
        report = json.loads(said.out)
        assert [(cell["transport"], cell["baseline"]) for cell in report["cells"]] == [
            ("tcp", "socket"),
            ("shm", "memcpy"),
        ]
        assert all(cell["bytes_per_s"] > 0 and cell["block_s"] > 0 for cell in report["cells"])
        assert (report["memory_bytes"], report["settings"]["busy_poll_s"]) == (1 << 20, pytest.approx(50e-6))
        assert "local: the target offers tcp, shm" in said.err


def test_only_a_target_is_measured_against(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            connection, _ = listener.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        assert main.run(["bench", "transfer", "--initiator", f"127.0.0.1:{port}"]) == exits.FAILED
        assert "is no target" in capsys.readouterr().err
    assert main.run(["bench", "transfer", "--initiator", f"127.0.0.1:{port}"]) == exits.UNREACHABLE
    assert "start `mooncake bench transfer --target` there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--target", "--initiator", "127.0.0.1:1"], "give one of them"),
        (["--host", "127.0.0.1"], "belong to --target"),
        (["--scattered"], "belongs to --against"),
        (["--host-step", "1ms", "--target"], "--host-step is not for --target"),
        (["--initiator", "nowhere"], "expected host:port"),
        (["--against", "/no/such/python"], "expected a Python"),
        (["--target", "--host", "203.0.113.9"], "cannot listen on 203.0.113.9"),
    ],
)
def test_modes_that_cannot_be(options: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", "transfer", *options]) == exits.USAGE
    assert reason in capsys.readouterr().err


def ours_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drop-in need not be installed for the processes that measure it to find it."""
    dropin = Path(__file__).parents[2] / "dropin"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(dropin), os.environ.get("PYTHONPATH", "")]))


def test_two_engines_are_compared_in_turn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ours_first(monkeypatch)
    options = ["--sizes", "4KiB,64KiB", "--batch", "8", "--direction", "write", "--seconds", "10ms", "--json"]
    assert main.run(["bench", "transfer", "--against", sys.executable, *options, "--at-least", "0"]) == exits.DONE
    report = json.loads(capsys.readouterr().out)
    assert [(cell["kind"], cell["block_bytes"]) for cell in report["cells"]] == [("write", 4096), ("write", 65536)]
    for cell in report["cells"]:
        assert cell["ours"]["bytes_per_s"] > 0
        assert cell["against"]["latency_s"]["p50"] > 0
        assert cell["ratio"]["count"] == 10


def _num_stopped(process: psutil.Process) -> int:
    return [child.status() for child in process.children()].count(psutil.STATUS_STOPPED)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_comparison_that_is_ended_leaves_no_process(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    ours_first(monkeypatch)
    options = ["--against", sys.executable, "--memory", "1MiB", "--sizes", "4KiB", "--batch", "4", "--seconds", "2s"]
    command = [sys.executable, "-m", "mooncake_cli.main", "bench", "transfer", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        me = psutil.Process(process.pid)
        wait_for(lambda: len(me.children()) == 4 and _num_stopped(me) == 2, 60)
        time.sleep(0.5)  # until it measures
        workers = me.children()
        began_s = time.monotonic()
        process.send_signal(number)
        process.wait(30)
    assert time.monotonic() - began_s < END_S  # nobody had to be killed
    assert len(workers) == 4
    wait_for(lambda: not any(alive(worker.pid) for worker in workers))


def test_only_our_side_is_told_to_look_before_it_sleeps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours_first(monkeypatch)
    told: dict[str, str | None] = {}

    class Noted(Process):
        def __init__(self, name: str, command: Sequence[str], environ: dict[str, str], folder: Path) -> None:
            told[name] = environ.get("MOONCAKE_BUSY_POLL")
            super().__init__(name, command, environ, folder)

    monkeypatch.setattr(engine_compare, "Process", Noted)
    options = ["--sizes", "4KiB", "--batch", "1", "--direction", "read", "--seconds", "5ms", "--busy-poll", "50us"]
    assert main.run(["bench", "transfer", "--against", sys.executable, *options]) == exits.DONE
    assert "busy poll 50us" in capsys.readouterr().out
    assert told == {"ours-target": "50us", "ours-initiator": "50us", "against-target": None, "against-initiator": None}


def test_an_interpreter_without_an_engine_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    assert main.run(["bench", "transfer", "--against", str(bare)]) == exits.USAGE
    assert "has no mooncake.engine" in capsys.readouterr().err


def test_an_interpreter_with_nixl_is_compared_through_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours_first(monkeypatch)
    package, about = tmp_path / "nixl", tmp_path / "nixl-9.9.dist-info"
    package.mkdir()
    about.mkdir()
    (about / "METADATA").write_text("Name: nixl\nVersion: 9.9\n")
    (package / "__init__.py").touch()
    shutil.copy(Path(__file__).parent / "nixl_stand_in.py", package / "_api.py")
    roots = os.pathsep.join([str(tmp_path), *(root for root in sys.path if not root.endswith("dropin"))])
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={roots} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    options = ["--transport", "shm,tcp", "--sizes", "4KiB", "--batch", "4", "--direction", "write", "--scattered"]
    options += ["--memory", "1MiB", "--seconds", "5ms", "--json"]
    assert main.run(["bench", "transfer", "--against", str(python), *options]) == exits.DONE
    report = json.loads(capsys.readouterr().out)
    assert report["against_engine"] == "NIXL 9.9"
    assert [cell["transport"] for cell in report["cells"]] == ["shm", "tcp"]
    assert all(cell["ratio"]["count"] == 10 for cell in report["cells"])


def test_engines_are_compared_over_what_both_may_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", "transfer", "--against", sys.executable, "--transport", "rdma"]) == exits.USAGE
    assert "expected transports of tcp, shm, got rdma" in capsys.readouterr().err


def test_a_host_computes_until_the_last_block_has_moved() -> None:
    mover = CopyMover(load_of(), memoryview(bytearray(16)), 2, other=memoryview(bytearray(16)))
    host = Host(1e-4)
    measured = measure(mover, 0.02, host)
    assert measured.moved_bytes
    assert sum(measured.host_steps_s) <= measured.duration_s
    assert measure(mover, 0.0).host_steps_s == []


def test_how_much_longer_a_step_takes_is_a_ratio_of_means_in_turn() -> None:
    found = sum_up([[1.0, 3.0], [2.0]], [[4.0], [3.0, 5.0]], [[2.0], []], seed=0)
    assert found.slower is not None
    assert (found.slower.median, found.slower.count) == (2.0, 2)
    assert found.baseline_slower is not None
    assert (found.baseline_slower.median, found.baseline_slower.count) == (1.0, 1)
    assert found.idle_s is not None
    assert found.idle_s.count == 3


def test_the_hosts_steps_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--transport",
        "local",
        "--sizes",
        "4KiB",
        "--memory",
        "1MiB",
        "--checksum",
        "off",
        "--direction",
        "read",
    ]
    code = main.run(["bench", "transfer", *options, "--seconds", "5ms", "--host-step", "200us"])
    printed = capsys.readouterr().out
    assert code == exits.DONE
    assert "step of 200us" in printed
    assert printed.count("local\tread\t4KiB") == 1
    assert "local read 4KiB" in printed


def test_what_several_links_carried_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    lanes = [
        LaneBytes(transport=transport, local=local, peer="10.1.0.2", num_bytes=3 << 20)
        for transport, local in (("rdma", "nic0/1"), ("rdma", "nic1/1"), ("tcp", "10.1.0.1"))
    ]
    settings = TransferSettings(transports=["rdma", "tcp"], sizes=[1])
    report = TransferReport(settings=settings, memory_bytes=1, cores=1, skipped={}, cells=[], lanes=lanes, unfinished=0)
    bench_transfer._print(report)
    printed = capsys.readouterr().out
    assert "rdma by link: nic0/1 to 10.1.0.2 3MiB, nic1/1 to 10.1.0.2 3MiB" in printed
    assert "tcp by link" not in printed
