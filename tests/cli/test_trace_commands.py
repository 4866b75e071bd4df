"""`mooncake trace`, `mooncake inspect trace`, and what `mooncake bench trace` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mooncake_cli.main import run

ROOT = Path(__file__).parent.parent.parent


def test_generate_inspect_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, other, out = tmp_path / "trace.jsonl", tmp_path / "other.csv", tmp_path / "report"
    made = ["trace", "generate", str(trace), "--kind", "sessions", "--requests", "60", "--to-block-tokens", "32"]
    assert run([*made, "--seed", "3", "--think", "5s"]) == 0
    assert run([*made, "--seed", "3"]) == 2
    assert "exists already: choose another file, or --force" in capsys.readouterr().err
    model = str(ROOT / "configs/models/llama3-70b.yaml")
    assert run(["inspect", "trace", str(trace), "--out", str(out), "--model", model]) == 0
    printed = capsys.readouterr().out
    assert "requests\t60" in printed
    assert "LRU capacity, blocks\tKV\thits, blocks\thits, tokens" in printed
    assert (out / "lru.png").read_bytes().startswith(b"\x89PNG")
    assert run(["inspect", "trace", str(trace), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {**json.loads((out / "report.json").read_text()), "kv_bytes_per_token": None}
    assert (shown["schema_version"], shown["requests"], shown["block_tokens"]) == (1, 60, 32)
    assert shown["unbounded"]["tokens"] > 0.3
    assert shown["lru"][-1]["blocks"] == pytest.approx(shown["unbounded"]["blocks"])

    assert run(["trace", "convert", str(trace), str(other), "--to", "azure", "--limit", "20", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["requests"] == 20
    assert len(said["lost"]) == 2
    coarse = tmp_path / "coarse.jsonl"
    assert run(["trace", "convert", str(trace), str(coarse), "--to-block-tokens", "512"]) == 0
    assert run(["inspect", "trace", str(coarse), "--json"]) == 0
    large = json.loads(capsys.readouterr().out)
    assert large["block_tokens"] == 512
    assert 0 < large["unbounded"]["tokens"] < shown["unbounded"]["tokens"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "trace", "no.jsonl"], "no.jsonl: cannot be read: No such file"),
        (["inspect", "trace", "bad.jsonl"], "bad.jsonl:1: input_length: expected int >= 1, found -1"),
        (["inspect", "trace", "bad.jsonl", "--format", "csv"], "expected a format of mooncake"),
        (["trace", "convert", "bad.jsonl", "out.jsonl"], "bad.jsonl:1: input_length"),
        (["trace", "convert", "bad.jsonl", "out.jsonl", "--to", "lmcache"], "can only be read"),
        (["trace", "generate", "out.jsonl", "--kind", "report", "--input-tokens", "9"], "got 9"),
        (["trace", "generate", "out.jsonl", "--kind", "sessions", "--skew", "1"], "--kind sessions has no --skew"),
        (["trace", "generate", "out.jsonl", "--burstiness", "2"], "--burstiness needs --arrivals bursty"),
        (["trace", "generate", "no/out.jsonl"], "out.jsonl: cannot be written: No such file"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"timestamp": 0, "input_length": -1, "output_length": 1, "hash_ids": []}\n')
    assert run(arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


def test_bench_trace_reads_other_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "azure.csv"
    lines = [f"2023-11-16 18:17:{second:02d}.5,{1000 + 100 * second},{5 + second}" for second in range(20)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))
    simulation = tmp_path / "simulation.yaml"
    simulation.write_text(
        f"model: {ROOT}/configs/models/llama3-70b.yaml\nhardware: {ROOT}/configs/hardware/a800-x8.yaml\n"
        "systems: [{name: small, prefill: 1, decode: 1}]\n"
    )
    arguments = ["bench", "trace", str(trace), "--config", str(simulation), "--json", "-"]
    assert run(arguments) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["systems"][0]["completed"] == 20
    assert shown["systems"][0]["hit_ratio"]["tokens"] == 0.0
    assert run([*arguments, "--format", "mooncake"]) == 2
    assert "azure.csv:1: line: expected a JSON object" in capsys.readouterr().err


def test_formats_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", "formats"]) == 0
    assert "lmcache\t" in capsys.readouterr().out
