"""The whole matrix of greedy equality: `scripts/acceptance equality`."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mooncake_core.inference.models import DEMO_FOLDER
from mooncake_core.testing.cluster import Cluster
from mooncake_core.testing.equality import Outcome, compare, draw_prompts, expected_tokens
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


@pytest.mark.parametrize("transports", ["[tcp]", "[shm, tcp]"])
@pytest.mark.parametrize("topology", ["1p1d", "2p2d"])
@pytest.mark.parametrize("chunk", [64, 512])
def test_greedy_tokens_are_those_of_generate(
    expected: Expected, topology: str, chunk: int, transports: str, tmp_path: Path
) -> None:
    folder, prompts, tokens = expected
    settings = [f"{side}.0.engine.chunk_tokens={chunk}" for side in ("prefill", "decode")]
    settings.append(f"transfer.transports={transports}")
    cluster = Cluster(CONFIGS / f"{topology}.yaml", tmp_path, f"model={folder}", *settings)
    try:
        outcomes = [compare(cluster, prompts, tokens, concurrency=CONCURRENCY) for _ in range(2)]
    finally:
        cluster.stop()
    for label, outcome in zip(("cold", "warm"), outcomes, strict=True):
        report(f"{folder.name} {topology} chunk {chunk} {transports} {label}", outcome)


def test_greedy_tokens_are_those_of_generate_though_decode_instances_die(tmp_path: Path) -> None:
    prompts = draw_prompts(NUM_PROMPTS, LONGEST, 512)
    tokens = expected_tokens(Reference(DEMO_FOLDER), prompts, NEW_TOKENS)
    cluster = Cluster(CONFIGS / "2p2d.yaml", tmp_path)
    killers = [threading.Timer(after_s, cluster.kill, [name]) for after_s, name in ((2, "decode-0"), (12, "decode-1"))]
    try:
        for killer in killers:
            killer.start()
        outcome = compare(cluster, prompts, tokens, concurrency=CONCURRENCY)
        deaths = cluster.log.count("died (killed by SIGKILL)")
    finally:
        for killer in killers:
            killer.cancel()
        cluster.stop()
    assert deaths >= 1, "all was over before an instance died"
    report(f"{deaths} decode instances died", outcome)


def report(label: str, outcome: Outcome) -> None:
    print(
        f"\n{label}: {outcome.compared} prompts, {len(outcome.excused)} ties excused, {len(outcome.wrong)} wrong, "
        f"{outcome.cached_tokens} tokens from the cache"
    )
    assert outcome.wrong == []
