"""mooncake bench calibrate: the cost model of an engine whose times are known is found again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mooncake_cli.main import run as run_command
from mooncake_core.bench.calibrate import CalibrationLimits, PrefillPoint, StepPoint, calibrate, fit
from mooncake_core.conductor.cost import hint_of
from mooncake_core.config.load import load_config
from mooncake_core.errors import UsageError
from mooncake_core.inference import mock
from mooncake_core.inference.contract import EngineSettings
from mooncake_core.inference.mock import MockEngine
from mooncake_core.inference.models import DEMO_FOLDER
from mooncake_core.wire.messages.membership import CostHint

HINT = CostHint(
    prefill_base_s=0.003,
    prefill_per_token_s=1e-4,
    prefill_per_token2_s=3e-8,
    step_base_s=0.004,
    step_per_sequence_s=2e-4,
    step_per_context_token_s=5e-7,
    fetch_bytes_per_s=2e9,
)


class SleepingClock:
    """Time that passes only where an engine sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def read(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SleepingClock:
    found = SleepingClock()
    monkeypatch.setattr(mock, "time", SimpleNamespace(sleep=found.sleep, monotonic=found.read))
    return found


def engine(kv_memory_bytes: int) -> Iterator[MockEngine]:
    made = MockEngine(
        EngineSettings(model_path=str(DEMO_FOLDER), kv_memory_bytes=kv_memory_bytes, options={"cost": vars_of(HINT)})
    )
    yield made
    made.close()


def vars_of(hint: CostHint) -> dict[str, float]:
    return {name: getattr(hint, name) for name in hint.__struct_fields__}


def test_the_times_of_a_mock_engine_are_found_again(clock: SleepingClock) -> None:
    for made in engine(16 << 20):
        limits = CalibrationLimits(longest_prompt=2000, largest_batch=8, chunk_tokens=2048)
        found = calibrate(made, limits, clock=clock.read)
        assert vars_of(hint_of(found.cost)) == pytest.approx(vars_of(HINT), rel=1e-6)
        assert max(found.prefill_error.p99, found.decode_error.p99) < 1e-6
        assert max(point.prompt_tokens for point in found.prefill) == 2000
        assert {point.batch for point in found.decode} == {1, 2, 4, 8}


def test_no_term_is_negative() -> None:
    """Small prompts that take longer than larger ones make no attention that gives time back."""
    prefill = [
        PrefillPoint(prompt_tokens=tokens, matched_tokens=0, measured_s=seconds)
        for tokens, seconds in ((16, 0.02), (64, 0.03), (256, 0.05), (1024, 0.06))
    ]
    decode = [StepPoint(batch=size, context_tokens=size * 100, measured_s=0.01) for size in (1, 2, 4)]
    found = fit(prefill, decode, CostHint(fetch_bytes_per_s=2e9, load_bytes_per_s=3e9))
    assert found.cost.prefill_per_token2 == 0
    assert min(vars_of(hint_of(found.cost)).values()) >= 0
    assert found.prefill_error.p99 > 0.05


def test_too_little_memory_is_said(clock: SleepingClock) -> None:
    for made in engine(4096):
        with pytest.raises(UsageError, match=r"expected KV memory for prompts of 64 tokens .* raise engine.kv_memory"):
            calibrate(made, CalibrationLimits(), clock=clock.read)


@pytest.mark.parametrize("kind", ["mock", pytest.param("torch", marks=pytest.mark.model)])
def test_what_is_written_is_a_part_of_the_configuration(kind: str, tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.yaml"
    section = {"engine": {"kind": kind, "kv_memory": "16MiB"}}
    if kind == "mock":
        section["engine"]["options"] = {"speed": 1000.0}  # type: ignore[assignment]
    cluster.write_text(yaml.safe_dump({"prefill": [section], "decode": [section]}))
    written = tmp_path / "cost.yaml"
    arguments = ["-c", str(cluster), "--longest", "128", "--batch", "2", "--repeats", "1", "--out", str(written)]
    assert run_command(["bench", "calibrate", *arguments]) == 0
    section["engine"].update(yaml.safe_load(written.read_text()))
    cluster.write_text(yaml.safe_dump({"prefill": [section], "decode": [section]}))
    cost = load_config(cluster, environ=os.environ).config.prefill[0].engine.cost
    assert cost is not None
    assert max(cost.prefill_per_token, cost.prefill_per_token2) > 0  # of prompts as short as these either fits
