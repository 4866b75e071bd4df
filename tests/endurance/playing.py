"""Plays episodes of a seed, and then of the next ones, for as long as there is time."""

from __future__ import annotations

import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.endurance.leaks import Leaks
from tests.endurance.machine import Endurance
from tests.endurance.world import World

EPISODES_PER_SEED = 10
STEPS = 30


def play(kind: str, folder: Path, first_seed: int, seconds: float) -> str:
    """What was done, in words. A failure names its seed; a cluster takes its time as it likes, so it may take several tries."""
    until = time.monotonic() + seconds
    counts: dict[str, int] = {}
    folder.mkdir()
    world = World(kind, folder)
    leaks = Leaks()
    number = first_seed
    try:
        while time.monotonic() < until:
            _play_seed(number, world, leaks, until, counts)
            number += 1
    except BaseException as error:
        failure = world.failure or error
        failure.add_note(
            f"kind {kind}, seed {number}: ENDURANCE_SEED={number} pytest tests/endurance -k {kind}; logs: {folder}"
        )
        raise failure from None
    finally:
        world.close()
    steps = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    return (
        f"{kind}: seeds {first_seed} to {number - 1}, {sum(counts.values())} steps ({steps}); at the end {leaks.last}"
    )


def _play_seed(number: int, world: World, leaks: Leaks, until: float, counts: dict[str, int]) -> None:
    machine = type("Machine", (Endurance,), {"world": world, "leaks": leaks, "until": until, "counts": counts})
    run_state_machine_as_test(
        seed(number)(machine),
        settings=settings(
            max_examples=EPISODES_PER_SEED,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            derandomize=False,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
