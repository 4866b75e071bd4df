"""When instances change their roles."""

from __future__ import annotations

from mooncake_core.conductor.role_planning import PoolLoad, Role, RolePlanner, RoleSettings, Switch

SETTINGS = RoleSettings(high=0.7, low=0.4, patience_s=20, rest_s=40, most_s=600)


def pools(prefill: float, decode: float, *, prefills: int = 3, decodes: int = 3) -> dict[Role, PoolLoad]:
    """The instances with the highest numbers have the least to do."""
    return {
        "prefill": PoolLoad(prefill, {f"p{number}": 9.0 - number for number in range(prefills)}),
        "decode": PoolLoad(decode, {f"d{number}": 9.0 - number for number in range(decodes)}),
    }


def test_a_pool_that_needs_help_for_long_enough_gets_who_has_the_least_to_do() -> None:
    planner = RolePlanner(SETTINGS)
    assert planner.look(pools(0.1, 0.9), 0) is None
    assert planner.look(pools(0.1, 0.9), 19.9) is None
    assert planner.look(pools(0.1, 0.9), 20) == Switch("p2", "decode")
    assert planner.look(pools(0.1, 0.9), 21) is None  # one at a time


def test_it_works_in_both_directions() -> None:
    planner = RolePlanner(SETTINGS)
    planner.look(pools(0.9, 0.1), 0)
    assert planner.look(pools(0.9, 0.1), 20) == Switch("d2", "prefill")


def test_a_moment_of_balance_begins_the_time_anew() -> None:
    planner = RolePlanner(SETTINGS)
    planner.look(pools(0.1, 0.9), 0)
    planner.look(pools(0.1, 0.6), 15)
    assert planner.look(pools(0.1, 0.9), 20) is None
    assert planner.look(pools(0.1, 0.9), 39) is None
    assert planner.look(pools(0.1, 0.9), 40) == Switch("p2", "decode")


def test_nobody_is_taken_from_a_pool_that_has_enough_to_do_or_is_too_small() -> None:
    for loads in (pools(0.5, 0.9), pools(0.1, 0.9, prefills=1), pools(0.38, 0.9, prefills=2), pools(0.9, 0.9)):
        planner = RolePlanner(SETTINGS)
        assert [planner.look(loads, now) for now in (0, 30, 60)] == [None] * 3


def test_after_a_change_it_waits_for_the_effect() -> None:
    planner = RolePlanner(SETTINGS)
    planner.look(pools(0.1, 0.9), 0)
    planner.look(pools(0.1, 0.9), 20)
    planner.joined("p2", "decode", 25)
    found = [planner.look(pools(0.1, 0.9, prefills=2, decodes=4), now) for now in range(26, 70)]
    assert [now for now, switch in zip(range(26, 70), found, strict=True) if switch] == [65]


def test_one_that_never_comes_back_is_given_up() -> None:
    planner = RolePlanner(SETTINGS)
    planner.look(pools(0.1, 0.9), 0)
    planner.look(pools(0.1, 0.9), 20)
    assert planner.look(pools(0.1, 0.9), 619) is None
    assert planner.look(pools(0.1, 0.9), 620) == Switch("p2", "decode")


def test_a_pool_that_has_lost_all_its_instances_gets_one_soon() -> None:
    planner = RolePlanner(RoleSettings(empty_s=5))
    starting = {"prefill": PoolLoad(0.0, {}), "decode": PoolLoad(0.9, {"d0": 1, "d1": 0})}
    assert all(planner.look(starting, float(now)) is None for now in range(100)), "it has none yet"
    planner.look({**starting, "prefill": PoolLoad(0.0, {"p0": 0})}, 100.0)
    assert planner.look(starting, 101.0) is None
    assert planner.look(starting, 105.0) is None
    assert planner.look(starting, 106.0) == Switch("d1", "prefill")
    assert planner.look(starting, 150.0) is None, "one is on its way"


def test_the_last_instance_of_a_pool_stays() -> None:
    planner = RolePlanner(RoleSettings(empty_s=5))
    planner.look({"prefill": PoolLoad(0.0, {"p0": 0}), "decode": PoolLoad(0.0, {"d0": 0})}, 0.0)
    alone = {"prefill": PoolLoad(0.0, {}), "decode": PoolLoad(0.0, {"d0": 0})}
    assert all(planner.look(alone, float(now)) is None for now in range(1, 100))


def test_another_is_asked_where_one_does_not_change() -> None:
    planner = RolePlanner(RoleSettings(empty_s=0))
    planner.look({"prefill": PoolLoad(0.0, {"p0": 0}), "decode": PoolLoad(0.0, {"d0": 0, "d1": 1})}, 0.0)
    emptied = {"prefill": PoolLoad(0.0, {}), "decode": PoolLoad(0.0, {"d0": 0, "d1": 1})}
    assert planner.look(emptied, 1.0) == Switch("d0", "prefill")
    planner.refused("d0")
    assert planner.look({**emptied, "decode": PoolLoad(0.0, {"d0": 2, "d1": 1})}, 2.0) == Switch("d1", "prefill")
