"""The whole matrix of greedy equality: `scripts/acceptance equality`."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooncake_core.inference.models import DEMO_FOLDER
from mooncake_core.testing.cluster import Cluster
from mooncake_core.testing.equality import compare, draw_prompts, expected_tokens
from mooncake_core.testing.models import FAMILIES, Reference, make_model

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1200)]
CONFIGS = Path(__file__).parent.parent.parent / "configs"
NUM_PROMPTS, LONGEST, NEW_TOKENS, CONCURRENCY = 60, 1500, 64, 8

Expected = tuple[Path, list[list[int]], list[tuple[list[int], list[float]]]]


@pytest.fixture(scope="module", params=["demo", *FAMILIES])
def expected(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    family = request.param
    folder = DEMO_FOLDER if family == "demo" else make_model(family, tmp_path_factory.mktemp(family) / family)
    prompts = draw_prompts(NUM_PROMPTS, LONGEST, 512)
    return folder, prompts, expected_tokens(Reference(folder), prompts, NEW_TOKENS)


@pytest.mark.parametrize("topology", ["1p1d", "2p2d"])
@pytest.mark.parametrize("chunk", [64, 512])
def test_greedy_tokens_are_those_of_generate(expected: Expected, topology: str, chunk: int, tmp_path: Path) -> None:
    folder, prompts, tokens = expected
    settings = [f"{side}.0.engine.chunk_tokens={chunk}" for side in ("prefill", "decode")]
    cluster = Cluster(CONFIGS / f"{topology}.yaml", tmp_path, f"model={folder}", *settings)
    try:
        outcomes = [compare(cluster, prompts, tokens, concurrency=CONCURRENCY) for _ in range(2)]
    finally:
        cluster.stop()
    for label, outcome in zip(("cold", "warm"), outcomes, strict=True):
        print(
            f"\n{folder.name} {topology} chunk {chunk} {label}: {outcome.compared} prompts, {len(outcome.excused)} ties "
            f"excused, {len(outcome.wrong)} wrong, {outcome.cached_tokens} tokens from the cache"
        )
        assert outcome.wrong == []
