"""Many threads, one store."""

from __future__ import annotations

from .world import World, case, in_threads, pattern

THREADS = 8


@case(1000, 200_000)
def threads_put_and_get_their_own(world: World, size: int) -> None:
    def work(number: int) -> bool:
        keys, values = world.keys(10), [pattern(size, seed=number * 10 + turn) for turn in range(10)]
        put = [world.store.put(key, value) for key, value in zip(keys, values, strict=True)]
        return put == [0] * 10 and [world.reader.get(key) for key in keys] == values

    assert in_threads(THREADS, work) == [True] * THREADS


@case()
def threads_read_the_same(world: World) -> None:
    key = world.put(pattern(300_000))
    assert set(in_threads(THREADS, lambda _: world.reader.get(key))) == {pattern(300_000)}


@case()
def threads_put_the_same_key(world: World) -> None:
    key = world.key()
    codes = in_threads(THREADS, lambda number: world.store.put(key, pattern(5000, seed=number)))
    assert list(codes) == [0] * THREADS
    assert world.store.get(key) in [pattern(5000, seed=number) for number in range(THREADS)]


@case()
def threads_read_into_memory_of_their_own(world: World) -> None:
    keys = [world.put(pattern(50_000, seed=number)) for number in range(THREADS)]
    targets = [world.memory(50_000) for _ in range(THREADS)]

    def work(number: int) -> bool:
        target = targets[number]
        read = [world.store.get_into(keys[number], target.address, 50_000) for _ in range(5)]
        return read == [50_000] * 5 and target.content == pattern(50_000, seed=number)

    assert in_threads(THREADS, work) == [True] * THREADS


@case()
def threads_look_while_others_put(world: World) -> None:
    keys = world.keys(40)

    def work(number: int) -> bool:
        if number % 2:
            return all(code in (0, 1) for _ in range(10) for code in world.store.batch_is_exist(keys))
        return all(world.store.put(key, b"value") == 0 for key in keys[number * 5 : number * 5 + 10])

    assert in_threads(THREADS, work) == [True] * THREADS
    assert list(world.store.batch_is_exist(keys)) == [1] * 40


@case()
def threads_remove_each_object_once(world: World) -> None:
    keys = [world.put() for _ in range(20)]
    codes = in_threads(THREADS, lambda _: [world.store.remove(key) for key in keys])
    for answers in zip(*codes, strict=True):
        assert sorted(answers) == [-704] * (THREADS - 1) + [0]


@case()
def threads_register_and_unregister(world: World) -> None:
    def work(number: int) -> bool:
        for _ in range(20):
            memory = world.memory(1000, pattern(1000, seed=number))
            key = world.key()
            if world.store.put_from(key, memory.address, 1000) != 0 or world.store.get(key) != memory.content:
                return False
        return True

    assert in_threads(4, work) == [True] * 4
