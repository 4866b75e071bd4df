"""An unchanged vLLM keeps its KVCache in the pool: a fresh engine gets what another one computed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mooncake_core.testing.vllm import Answer, Role, VllmEngine, await_objects, prompts

PYTHON = os.environ.get("MOONCAKE_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON, reason="MOONCAKE_VLLM_PYTHON names no interpreter with vLLM and the drop-in"),
]
PROMPTS = prompts(3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    """What vLLM answers without a pool."""
    with VllmEngine(PYTHON, tmp_path_factory.mktemp("alone"), "alone") as engine:
        return engine.generate(PROMPTS)


@pytest.mark.parametrize(("filler", "taker"), [("kv_both", "kv_both"), ("kv_producer", "kv_consumer")])
def test_a_fresh_engine_takes_its_prefix_from_the_pool(
    master: str, alone: list[Answer], tmp_path: Path, filler: Role, taker: Role
) -> None:
    with VllmEngine(PYTHON, tmp_path, "a", master=master, role=filler) as a:
        filled = a.generate(PROMPTS)
        await_objects(master, sum(answer.num_blocks for answer in filled))
        with VllmEngine(PYTHON, tmp_path, "b", master=master, role=taker) as b:
            taken = b.generate(PROMPTS)
    assert [answer.tokens for answer in filled] == [answer.tokens for answer in alone]
    assert [answer.tokens for answer in taken] == [answer.tokens for answer in alone]
    assert [answer.cached_tokens for answer in filled] == [0] * len(PROMPTS)
    assert [answer.cached_tokens for answer in taken] == [answer.most_cached_tokens for answer in taken]
    assert min(answer.most_cached_tokens for answer in taken) > 0
