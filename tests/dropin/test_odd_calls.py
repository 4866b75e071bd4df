"""Calls that are odd, or half wrong: the rest of them is done, and what is wrong is a code and a line of the log."""

from __future__ import annotations

import pytest

from tests.dropin.cases.world import World, pattern

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]


def groups_of(world: World, keys: list[str]) -> list[str]:
    return [found.group for found in world.store._link.store.describe(keys)]


def test_a_put_session_puts_objects_into_their_groups(world: World) -> None:
    keys, source, config = world.keys(2), world.memory(10, pattern(10)), world.Config()
    config.group_ids = ["one", "two"]
    assert world.store.batch_put_session_start(keys, [10, 10], config) == [0, 0]
    whole = [[source.address]] * 2, [[10]] * 2, [[0]] * 2
    assert world.store.batch_put_from_multi_buffer_ranges(keys, *whole) == [10, 10]
    assert world.store.batch_put_session_end(keys) == [0, 0]
    assert groups_of(world, keys) == ["one", "two"]


def test_groups_stay_with_their_objects_where_one_of_them_is_refused(world: World) -> None:
    keys, source, config = world.keys(3), world.memory(10, pattern(10)), world.Config()
    config.group_ids = ["one", "two", "three"]
    assert world.store.batch_put_from(keys, [source.address, 4096, source.address], [10] * 3, config) == [0, -600, 0]
    assert groups_of(world, [keys[0], keys[2]]) == ["one", "three"]
    others = world.keys(3)
    assert world.store.put_batch(others, [b"1", b"", b"3"], config) == -600
    assert world.store.get_batch(others) == [b"1", b"", b"3"]
    assert groups_of(world, [others[0], others[2]]) == ["one", "three"]
