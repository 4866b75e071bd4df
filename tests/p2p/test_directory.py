"""Who is sent where: pure, so that a swarm of hundreds is a loop."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.errors import InvalidRequest, ObjectExists, ObjectNotFound
from mooncake_core.p2p.directory import AVOID_S, MOST_FAILURES, MOST_UPLOADS, SILENT_S, Directory
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.p2p import (
    BeginPull,
    FailedShard,
    Holder,
    ListReplicas,
    NextShard,
    PublishReplica,
    PullBegun,
    ReplicaList,
    ShardTask,
    WithdrawReplica,
)

SHARD = 100


def holder(endpoint: str, num_shards: int = 8) -> Holder:
    return Holder(endpoint=endpoint, incarnation=1, spans=[(4096, SHARD * num_shards)])


def published(num_shards: int = 8) -> Directory:
    directory = Directory()
    checksums = list(range(num_shards))
    message = PublishReplica(name="x", holder=holder("origin", num_shards), shard_bytes=SHARD, checksums=checksums)
    assert directory.handle(message, 0) == Done()
    return directory


def begin(directory: Directory, endpoint: str, num_shards: int = 8, now: float = 0) -> None:
    answer = directory.handle(BeginPull(name="x", holder=holder(endpoint, num_shards)), now)
    assert answer == PullBegun(size_bytes=SHARD * num_shards, shard_bytes=SHARD, checksums=list(range(num_shards)))


def ask(directory: Directory, endpoint: str, now: float = 0, **said: list) -> ShardTask:
    answer = directory.handle(NextShard(name="x", endpoint=endpoint, **said), now)
    assert isinstance(answer, ShardTask)
    return answer


def failed(task: ShardTask, *, is_gone: bool = False) -> list[FailedShard]:
    assert task.source is not None
    return [FailedShard(shard=task.shard, source=task.source.endpoint, is_gone=is_gone)]


def test_one_puller_gets_every_shard_once() -> None:
    directory = published()
    begin(directory, "a")
    shards, done = [], []
    while not (task := ask(directory, "a", done=done)).is_whole:
        assert task.source == holder("origin")
        shards.append(task.shard)
        done = [task.shard]
    assert sorted(shards) == list(range(8))
    found = directory.handle(ListReplicas(), 0)
    assert isinstance(found, ReplicaList)
    assert found.objects[0].shards_held == {"origin": 8, "a": 8}


def test_two_pullers_begin_far_apart_and_feed_each_other() -> None:
    directory = published()
    begin(directory, "a")
    begin(directory, "b")
    first, second = ask(directory, "a"), ask(directory, "b")
    assert (first.shard, second.shard) == (0, 4)
    ask(directory, "a", done=[0])
    ask(directory, "b", done=[4])
    tasks = [ask(directory, "a") for _ in range(MOST_UPLOADS)]
    # The origin is busy then: what the other has is fetched there, and no more.
    assert [(task.shard, task.source and task.source.endpoint) for task in tasks] == [
        (2, "origin"),
        (3, "origin"),
        (4, "b"),
        (-1, None),
    ]


def test_no_source_serves_more_than_a_few() -> None:
    directory = published(100)
    begin(directory, "a", 100)
    tasks = [ask(directory, "a") for _ in range(MOST_UPLOADS + 3)]
    assert [task.shard >= 0 for task in tasks] == [True] * MOST_UPLOADS + [False] * 3
    assert tasks[-1].wait_s > 0
    assert ask(directory, "a", done=[tasks[0].shard]).shard >= 0


def test_who_falls_silent_does_not_keep_a_source_busy() -> None:
    directory = published(100)
    begin(directory, "dead", 100)
    for _ in range(MOST_UPLOADS):
        ask(directory, "dead")
    begin(directory, "a", 100, now=1)
    assert ask(directory, "a", now=1).source is None
    assert ask(directory, "a", now=SILENT_S + 2).source == holder("origin", 100)


def test_a_source_that_failed_is_left_alone_for_a_while_and_then_for_good() -> None:
    directory = published()
    begin(directory, "a")
    now = 0.0
    for number in range(MOST_FAILURES):
        task = ask(directory, "a", now)
        assert task.source == holder("origin"), number
        after = ask(directory, "a", now, failed=failed(task))
        now += AVOID_S
    assert after.is_lost
    begin(directory, "b", now=now)
    assert ask(directory, "b", now).source == holder("origin")


def test_a_fetch_that_went_well_makes_up_for_those_that_failed() -> None:
    directory = published(100)
    begin(directory, "a", 100)
    now = 0.0
    for _ in range(MOST_UPLOADS - 1):  # each time one fetch stays under way
        for _ in range(MOST_FAILURES - 1):
            task = ask(directory, "a", now)
            assert ask(directory, "a", now, failed=failed(task)).wait_s > 0
            now += AVOID_S
        task = ask(directory, "a", now)
        following = ask(directory, "a", now, done=[task.shard])
        assert following.source == holder("origin", 100)


def test_bytes_that_are_gone_are_gone_for_all() -> None:
    directory = published(1)
    begin(directory, "a", 1)
    begin(directory, "b", 1)
    task = ask(directory, "a")
    assert ask(directory, "a", failed=failed(task, is_gone=True)).is_lost
    assert ask(directory, "b").is_lost


def test_a_holder_that_withdraws_is_no_source_and_the_last_one_takes_the_name_along() -> None:
    directory = published()
    begin(directory, "a")
    for task in [ask(directory, "a") for _ in range(3)]:
        ask(directory, "a", done=[task.shard])
    directory.handle(WithdrawReplica(name="x", endpoint="origin"), 0)
    begin(directory, "b")
    assert ask(directory, "b").source == holder("a")
    directory.handle(WithdrawReplica(name="x", endpoint="a"), 0)
    with pytest.raises(ObjectNotFound):
        ask(directory, "b")
    assert directory.handle(ListReplicas(), 0) == ReplicaList(objects=[])
    assert directory.handle(WithdrawReplica(name="x", endpoint="a"), 0) == Done()


def test_what_does_not_fit_together_is_refused() -> None:
    directory = published()
    same = PublishReplica(name="x", holder=holder("other"), shard_bytes=SHARD, checksums=list(range(8)))
    assert directory.handle(same, 0) == Done()
    with pytest.raises(ObjectExists, match="other bytes"):
        directory.handle(PublishReplica(name="x", holder=holder("o"), shard_bytes=SHARD, checksums=[7] * 8), 0)
    with pytest.raises(InvalidRequest, match="a checksum for each shard"):
        directory.handle(PublishReplica(name="y", holder=holder("o"), shard_bytes=SHARD, checksums=[7]), 0)
    with pytest.raises(InvalidRequest, match="has 800 bytes, the memory for it 700"):
        directory.handle(BeginPull(name="x", holder=holder("a", 7)), 0)
    with pytest.raises(ObjectExists, match="already"):
        directory.handle(BeginPull(name="x", holder=holder("origin")), 0)
    with pytest.raises(ObjectNotFound):
        directory.handle(BeginPull(name="nothing", holder=holder("a")), 0)
    with pytest.raises(ObjectNotFound, match="begin anew"):
        ask(directory, "stranger")


@given(num_pullers=st.integers(1, 12), num_shards=st.integers(1, 40), seed=st.integers(0, 1000))
def test_a_swarm_gets_everything_and_spares_the_origin(num_pullers: int, num_shards: int, seed: int) -> None:
    """Rounds: each that has room asks, then some of what is under way arrives, or fails."""
    rng = random.Random(seed)
    directory = published(num_shards)
    names = [f"p{number}" for number in range(num_pullers)]
    for name in names:
        begin(directory, name, num_shards)
    fetched: dict[str, set[int]] = {name: set() for name in names}
    under_way: dict[str, list[ShardTask]] = {name: [] for name in names}
    served: Counter[str] = Counter()
    now = 0.0
    for _ in range(20_000):
        now += 0.1
        for name in names:
            while len(under_way[name]) < 3 and (task := ask(directory, name, now)).source is not None:
                assert task.shard not in fetched[name]
                source = task.source.endpoint
                assert source == "origin" or task.shard in fetched[source]
                under_way[name].append(task)
        busy = Counter(task.source.endpoint for tasks in under_way.values() for task in tasks if task.source)
        assert max(busy.values(), default=0) <= MOST_UPLOADS
        for name in names:
            rng.shuffle(under_way[name])
            if under_way[name]:
                task = under_way[name].pop()
                assert task.source is not None
                if rng.random() < 0.02:
                    said = {"failed": failed(task)}
                else:
                    fetched[name].add(task.shard)
                    served[task.source.endpoint] += 1
                    said = {"done": [task.shard]}
                following = ask(directory, name, now, **said)
                if following.source is not None:
                    under_way[name].append(following)
        if all(len(shards) == num_shards for shards in fetched.values()):
            break
    assert all(len(shards) == num_shards for shards in fetched.values())
    assert sum(served.values()) == num_pullers * num_shards
