"""The command as a user types it: what goes where, exit codes, and what is imported for it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
import pytest

from mooncake_cli import exits, main
from mooncake_core import errors
from mooncake_core.roles.run_directory import RunDirectory
from tests.roles.start_states import state

COMMANDS = sorted(main.COMMANDS)


def mooncake(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mooncake_cli.main", *arguments]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(cwd), "XDG_CONFIG_HOME": str(cwd), **environ}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from mooncake_cli import main; main.run(['--help']); "
        "print([name for name in ('torch', 'zmq', 'rich', 'msgspec', 'transformers', 'httpx') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "mooncake start --role all -c configs/local.yaml" in result.stdout
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([name, "--help"]) == exits.DONE
    printed = capsys.readouterr().out
    assert printed.startswith("Usage: ")
    assert main.COMMANDS[name].rstrip(".").split(",")[0].split("(")[0] in printed


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["strat"], 2, "Did you mean start?"),
        (["start"], 2, "Missing option '--role'"),
        (["start", "--role", "all"], 2, "no configuration: give -c FILE or set MOONCAKE_CONFIG"),
        (["start", "--role", "all", "-c", "no.yaml"], 2, "no.yaml: cannot be read: No such file"),
        (["start", "--role", "store", "--name", "x", "-c", "ok.yaml"], 2, "no role store called x (it has: s)"),
        (["start", "--role", "all", "-c", "bad.yaml"], 2, "bad.yaml:1:1: modle: unknown key; did you mean model?"),
        (["start", "--role", "store", "-c", "free.yaml"], 2, "free.yaml has no entry under `store`: add one"),
        (["config", "validate", "bad.yaml", "ok.yaml"], 2, "did you mean model?"),
        (["config", "validate", "-c", "bad.yaml"], 2, "bad.yaml:1:1: modle: unknown key"),
        (["config", "validate"], 2, "no configuration: give -c FILE or set MOONCAKE_CONFIG"),
        (["config", "validate", "ok.yaml", "--set", "pool.x=1"], 2, "--set pool.x=1: pool.x: unknown key"),
        (["status"], 3, "no cluster runs on this host"),
        (["complete", "x"], 3, "no cluster runs on this host"),
        (["complete", "x", "--url", "http://127.0.0.1:1"], 3, "http://127.0.0.1:1 cannot be reached"),
        (["complete", "x", "--url", "foo"], 2, "expected a URL like http://127.0.0.1:8000, got 'foo'"),
        (["complete", "x", "--url", "http://h:x"], 2, "expected a URL like http://127.0.0.1:8000, got 'http://h:x'"),
        (["complete", "x", "--url", "http://127.0.0.1:1/v1/"], 3, "http://127.0.0.1:1 cannot be reached"),
        (["complete", "x", "--timeout", "-1"], 2, "expected a duration like 30s, 100ms or 5m, got '-1'"),
        (["complete", "x", "--timeout", "nan"], 2, "expected a duration like 30s, 100ms or 5m, got 'nan'"),
        (["complete", "x", "--timeout", "0"], 2, "expected a duration of more than 0, like 30s, got '0'"),
        (["complete", "x", "--timeout", "5s", "--url", "http://127.0.0.1:1"], 3, "cannot be reached"),
        (["complete", "x", "--timeout", "2.5", "--url", "http://127.0.0.1:1"], 3, "cannot be reached"),
        (["bench", "serve", "--url", "127.0.0.1:8000"], 2, "expected a URL like"),
        (["bench", "serve", "--url", "http://127.0.0.1:1"], 3, "does not answer like an OpenAI-compatible server"),
        (["inspect", "cache", "-c", "ok.yaml"], 3, "nobody"),
        (["inspect", "cache", "--cluster", "nix"], 3, "no cluster called nix runs on this host"),
        (["stop"], 0, "nothing runs here"),
        (["stop", "--cluster", "nix"], 0, "no cluster called nix runs here, and no other"),
        (["complete", "x", "-c", "ok.yaml", "--cluster", "zz"], 2, "is of cluster local, --cluster says zz"),
        (["status", "-c", "free.yaml"], 3, "cluster free does not run on this host, and has no fixed port"),
    ],
)
def test_wrong_usage_is_one_clear_message_and_a_code(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "bad.yaml").write_text("modle: x")
    (tmp_path / "ok.yaml").write_text("master: {port: 1}\nstore: [{name: s}]")
    (tmp_path / "free.yaml").write_text("cluster: free\nmaster: {port: 0}")
    result = mooncake(*arguments, cwd=tmp_path)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["plugins"],
        ["plugins", "--check"],
        ["exit-codes"],
        ["config", "show", "-c", "ok.yaml"],
        ["config", "show", "--origin", "-c", "ok.yaml"],
        ["config", "validate", "ok.yaml"],
        ["config", "validate", "-c", "ok.yaml"],
        ["config", "schema"],
        ["config", "init"],
        ["config", "init", "new.yaml"],
        ["auth", "init", "--file", "key"],
        ["stop"],
    ],
)
def test_json_is_json_with_a_version(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "ok.yaml").write_text("model: demo")
    result = mooncake(*arguments, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["schema_version"] == 1


def test_a_key_is_written_once_and_can_be_loaded(tmp_path: Path) -> None:
    first = mooncake("auth", "init", cwd=tmp_path)
    path = tmp_path / "mooncake" / "cluster.key"
    assert first.stdout == f"auth:\n  key_file: {path}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    again = mooncake("auth", "init", cwd=tmp_path)
    assert (again.returncode, "exists already" in again.stderr) == (2, True)


def test_a_configuration_can_be_made_shown_and_checked(tmp_path: Path) -> None:
    assert mooncake("config", "init", "c.yaml", cwd=tmp_path).returncode == 0
    assert mooncake("config", "init", "c.yaml", cwd=tmp_path).returncode == 2
    assert mooncake("config", "validate", "c.yaml", cwd=tmp_path).stdout == "c.yaml: valid\n"
    shown = mooncake("config", "show", "--origin", "-c", "c.yaml", "--set", "model=m", cwd=tmp_path)
    rows = dict(line.split("\t")[::2] for line in shown.stdout.splitlines())
    assert rows["model"] == "--set model=m"
    assert rows["pool.replicas"].startswith("c.yaml:")
    schema = json.loads(mooncake("config", "schema", cwd=tmp_path).stdout)
    assert schema["$defs"]
    assert json.loads(mooncake("config", "schema", "--json", cwd=tmp_path).stdout)["schema"] == schema


def test_origins_are_shown_with_values_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("insecure: true\nserved_name: 'on: 1'\nprefill: [{local_node: null}]\nstore: []")
    lines = mooncake("config", "show", "--origin", "-c", "c.yaml", cwd=tmp_path).stdout.splitlines()
    values = dict(line.split("\t")[:2] for line in lines)
    assert values["insecure"] == "true"
    assert values["auth"] == values["prefill.0.local_node"] == "null"
    assert values["served_name"] == "'on: 1'"
    assert values["store"] == "[]"
    assert values["gateway.api_keys"] == "{}"
    assert values["pool.read_lease"] == "5s"
    assert values["transfer.host_id"] == "''"


def test_a_missing_model_is_a_problem_among_the_others(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: /no/such\npool: {evict: lru}")
    result = mooncake("config", "validate", "c.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: c.yaml:1:8: model: expected `demo` or a Hugging Face folder, got '/no/such', which is no folder",
        "error: c.yaml:2:8: pool.evict: unknown key; did you mean eviction?",
    ]
    (tmp_path / "c.yaml").write_text("model: .\nprefill: []")
    result = mooncake("config", "validate", "c.yaml", cwd=tmp_path)
    assert "c.yaml:1:8: model: expected a Hugging Face folder, got '.', which has no config.json" in result.stderr
    mocked = "model: /no/such\nprefill: [{engine: {kind: mock}}]\ndecode: []"
    (tmp_path / "c.yaml").write_text(mocked)
    assert mooncake("config", "validate", "c.yaml", cwd=tmp_path).returncode == 0


def test_every_command_prints_json() -> None:
    def leaves(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                yield from leaves(command, f"{path} {name}")
            else:
                yield f"{path} {name}", command

    found = dict(leaves(main.cli, "mooncake"))
    assert len(found) > len(COMMANDS)
    assert [
        path for path, command in found.items() if not any("--json" in option.opts for option in command.params)
    ] == []


def test_a_reader_that_stops_early_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m mooncake_cli.main config init | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [["plugins"], ["--help"], ["config", "--help"], ["exit-codes", "--json"], ["config", "init"]],
    ids=" ".join,
)
def test_a_reader_that_has_gone_is_no_error(tmp_path: Path, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mooncake_cli.main", *arguments]
    with os.fdopen(writing, "wb") as gone:
        result = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, cwd=tmp_path, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_failure_is_one_also_where_nobody_reads_why(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("modle: x")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mooncake_cli.main", "config", "validate", "bad.yaml"]
    with os.fdopen(writing, "wb") as gone:
        result = subprocess.run(command, stdout=gone, stderr=gone, cwd=tmp_path, timeout=60)
    assert result.returncode == exits.USAGE


def test_another_pipe_that_breaks_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(kind: str) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("mooncake_core.registry.installed", broken)
    assert main.run(["plugins"]) == exits.FAILED
    assert capfd.readouterr().err == "error: Broken pipe\n"


def test_a_bug_is_one_sentence_and_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("mooncake_core.registry.installed", lambda kind: 1 // 0)
    assert main.run(["plugins"]) == exits.BUG
    printed = capsys.readouterr().err
    assert "this is a bug in mooncake: ZeroDivisionError" in printed
    report = Path(printed.rpartition("the report is in ")[2].strip())
    assert "Traceback" in report.read_text()
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.ModelTooLarge("x"), 2),
        (errors.PluginUnknown("x"), 2),
        (errors.AuthenticationFailed("x"), 2),
        (errors.PeerUnreachable("x"), 3),
        (errors.DeadlineExceeded("x"), 3),
        (errors.NoSpace("x"), 1),
    ],
)
def test_errors_have_exit_codes(error: errors.MooncakeError, code: int) -> None:
    assert exits.code_of(error) == code


def test_stop_finds_the_cluster_as_the_others_do(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("modle: x")
    result = mooncake("stop", cwd=tmp_path, MOONCAKE_CONFIG="bad.yaml")
    assert (result.returncode, "did you mean model?" in result.stderr) == (2, True)


class Pages(BaseHTTPRequestHandler):
    """A web server for people."""

    status = 404

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"<!DOCTYPE html><p>a page")

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize(("status", "said"), [(404, "404 Not Found"), (200, "200 OK")])
def test_a_server_that_is_no_gateway_is_said_to_be_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, said: str
) -> None:
    monkeypatch.setattr(Pages, "status", status)
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        result = mooncake("complete", "x", "--url", url, cwd=tmp_path)
        server.shutdown()
        thread.join()
    assert result.returncode == exits.UNREACHABLE
    assert result.stderr == (
        f"error: {url}/v1/models does not answer like an OpenAI-compatible server ({said}): "
        "is it the address of a gateway?\n"
    )


def test_stop_says_which_clusters_there_are(tmp_path: Path) -> None:
    file = RunDirectory("here", tmp_path / "mooncake").claim("all")
    file.write(state("here", os.getpid()))
    result = mooncake("stop", "--cluster", "nix", cwd=tmp_path)
    file.close()
    assert (result.returncode, result.stderr) == (0, "no cluster called nix runs here; there is: here\n")


def test_spans_that_were_dropped_are_said_to_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mooncake_cli.commands import inspect_requests
    from mooncake_core.telemetry.spans import Span
    from mooncake_core.wire.messages.timeline import GetSpans, Requests, SpansOf

    def ask(message: object, reply_type: type, **where: object) -> object:
        timeline = SpansOf(spans=[Span("p", "x", 1.0, 2.0, {})], dropped=18)
        return timeline if isinstance(message, GetSpans) else Requests(requests=[])

    monkeypatch.setattr(inspect_requests, "ask", ask)
    assert main.run(["inspect", "requests", "r"]) == exits.DONE
    assert "18 more spans were dropped: a process keeps 4096 of a request" in capsys.readouterr().err
    assert main.run(["inspect", "requests", "r", "--json"]) == exits.DONE
    assert json.loads(capsys.readouterr().out)["dropped"] == 18
