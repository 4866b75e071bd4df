"""What is sent, and when."""

from __future__ import annotations

import itertools

import pytest

from mooncake_core.bench.completions import PROBE_PROMPT
from mooncake_core.bench.workload import ServeSettings, arrival_times, make_prompts
from mooncake_core.gateway.tokenizer import Tokenizer
from mooncake_core.inference.models import DEMO_FOLDER


def test_prompts_are_drawn_by_the_seed_and_share_their_beginning() -> None:
    settings = ServeSettings(url="", requests=20, prompt_tokens=140, shared_prefix=0.5)
    prompts = make_prompts(settings, 1.4)
    assert prompts == make_prompts(settings, 1.4)
    words = [prompt.split() for prompt in prompts]
    assert {len(parts) for parts in words} == {100}
    assert len({tuple(parts[:50]) for parts in words}) == 1
    assert len(set(prompts)) == 20


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("tokens", [128, 256, 1000])
def test_prompts_have_the_tokens_that_were_asked_for_by_the_demo_models_tokenizer(tokens: int, seed: int) -> None:
    tokenizer = Tokenizer(DEMO_FOLDER)
    per_word = len(tokenizer.encode(PROBE_PROMPT)) / len(PROBE_PROMPT.split())
    settings = ServeSettings(url="", requests=20, prompt_tokens=tokens, seed=seed)
    lengths = [len(tokenizer.encode(prompt)) for prompt in make_prompts(settings, per_word)]
    assert sum(lengths) / len(lengths) == pytest.approx(tokens, rel=0.05)


def test_constant_arrivals_are_evenly_spaced() -> None:
    times = arrival_times(ServeSettings(url="", requests=5, rate=4.0, arrivals="constant"))
    assert times == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_poisson_arrivals_keep_the_rate_and_their_gaps_vary_as_exponentials_do() -> None:
    settings = ServeSettings(url="", requests=5001, rate=20.0, seed=7)
    times = arrival_times(settings)
    assert times == arrival_times(settings)
    assert times != arrival_times(ServeSettings(url="", requests=5001, rate=20.0, seed=8))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 20, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.1)


def test_a_closed_loop_has_no_arrivals() -> None:
    with pytest.raises(ValueError, match="expected a rate"):
        arrival_times(ServeSettings(url=""))
