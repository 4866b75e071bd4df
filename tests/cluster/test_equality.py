"""Greedy output equals generate's, token for token, whatever the topology, the chunk size and the cache.

The whole matrix runs in `scripts/acceptance equality`; here is one cell of it per topology.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mooncake_core.inference.models import DEMO_FOLDER
from mooncake_core.testing.cluster import Cluster
from mooncake_core.testing.equality import compare, draw_prompts, expected_tokens
from mooncake_core.testing.models import Reference, make_model

pytestmark = [pytest.mark.cluster, pytest.mark.model, pytest.mark.timeout(300)]
CONFIGS = Path(__file__).parent.parent.parent / "configs"


@pytest.mark.parametrize(("family", "topology", "chunk"), [("demo", "1p1d", 64), ("qwen3", "2p2d", 512)])
def test_greedy_tokens_are_those_of_generate(family: str, topology: str, chunk: int, tmp_path: Path) -> None:
    folder = DEMO_FOLDER if family == "demo" else make_model(family, tmp_path / family)
    prompts = draw_prompts(10, 500, 512)
    expected = expected_tokens(Reference(folder), prompts, 24)
    sides = ("prefill", "decode")
    settings = [f"{side}.0.engine.{key}" for side in sides for key in (f"chunk_tokens={chunk}", "dtype=float32")]
    cluster = Cluster(CONFIGS / f"{topology}.yaml", tmp_path, f"model={folder}", *settings)
    try:
        cold = compare(cluster, prompts, expected)
        warm = compare(cluster, prompts, expected)
    finally:
        cluster.stop()
    print(f"{family} {topology} chunk {chunk}: {len(cold.excused)} cold and {len(warm.excused)} warm ties excused")
    assert cold.wrong == []
    assert warm.wrong == []
    assert warm.cached_tokens > cold.cached_tokens
