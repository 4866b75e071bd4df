"""Tensors keep their type and shape, whole and in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.dropin.cases.world import World

torch = pytest.importorskip("torch")
store_module = pytest.importorskip("mooncake.store")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]


def same(found: Any, expected: Any) -> bool:
    return found is not None and found.dtype == expected.dtype and torch.equal(found, expected)


def tp(rank: int, size: int, split_dim: int = 0) -> Any:
    return store_module.ParallelAxis(kind="tp", rank=rank, size=size, split_dim=split_dim)


def dp(rank: int, size: int) -> Any:
    return store_module.ParallelAxis(kind="dp", rank=rank, size=size)


def parallelism(*axes: Any) -> Any:
    return store_module.TensorParallelism(axes=list(axes))


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "float64", "int8", "uint8", "int64", "bool"])
def test_types_and_bytes_are_kept(world: World, name: str) -> None:
    tensor = torch.arange(60).reshape(3, 4, 5).to(getattr(torch, name))
    key = world.key()
    assert world.store.put_tensor(key, tensor) == 0
    assert same(world.reader.get_tensor(key), tensor)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (1, 2, 3, 4, 5, 6, 7, 8)])
def test_shapes_are_kept(world: World, shape: tuple[int, ...]) -> None:
    tensor, key = torch.ones(shape), world.key()
    assert world.store.put_tensor(key, tensor) == 0
    assert same(world.store.get_tensor(key), tensor)


def test_a_view_is_stored_as_what_it_shows(world: World) -> None:
    tensor, key = torch.arange(24).reshape(4, 6).t()[1:4], world.key()
    assert world.store.put_tensor(key, tensor) == 0
    assert same(world.store.get_tensor(key), tensor)


def test_what_is_no_tensor_is_refused_and_what_is_not_there_is_none(world: World) -> None:
    assert world.store.put_tensor(world.key(), [1, 2]) == -600
    assert world.store.get_tensor(world.key()) is None
    assert world.store.get_tensor(world.put(b"no tensor, but long enough for a header" * 10)) is None


def test_batches_configs_and_upserts(world: World) -> None:
    keys, tensors = world.keys(3), [torch.arange(n + 1) for n in range(3)]
    assert world.store.batch_put_tensor(keys[:1], tensors[:1]) == [0]
    assert world.store.batch_pub_tensor(keys[1:2], tensors[1:2], world.Config()) == [0]
    assert world.store.batch_upsert_pub_tensor(keys[2:], tensors[2:]) == [0]
    assert all(map(same, world.store.batch_get_tensor(keys), tensors))
    assert world.store.upsert_tensor(keys[0], tensors[2]) == 0
    assert same(world.store.get_tensor(keys[0]), tensors[2])
    assert world.store.batch_get_tensor([keys[0], world.key()])[1] is None


def test_one_tensor_with_a_config_put_and_replaced(world: World) -> None:
    key, config = world.key(), world.Config()
    config.group_ids = ["group"]
    assert world.store.pub_tensor(key, torch.arange(4), config) == 0
    assert world.store.pub_tensor(key, torch.arange(5), config) == 0
    assert same(world.store.get_tensor(key), torch.arange(4))
    assert world.store.upsert_pub_tensor(key, torch.arange(6), config) == 0
    assert same(world.store.get_tensor(key), torch.arange(6))
    assert groups_of(world, [key]) == ["group"]
    assert world.store.batch_upsert_tensor([key, world.key()], [torch.arange(7), "no tensor"]) == [0, -600]
    assert same(world.store.get_tensor(key), torch.arange(7))


def test_into_and_from_memory(world: World) -> None:
    tensor, key, other = torch.randn(10, 10), world.key(), world.key()
    assert world.store.put_tensor(key, tensor) == 0
    memory = world.memory(4096)
    found = world.store.get_tensor_into(key, memory.address, memory.size)
    assert same(found, tensor)
    assert memory.address <= found.data_ptr() < memory.address + memory.size
    length = world.store.get_size(key)
    assert world.store.put_tensor_from(other, memory.address, length) == 0
    assert same(world.store.get_tensor(other), tensor)
    assert world.store.put_tensor_from(world.key(), memory.address, length - 1) == -600
    assert world.store.get_tensor_into(key, memory.address, 100) is None


def test_into_another_tensor(world: World) -> None:
    tensor, key = torch.randn(10, 10), world.key()
    assert world.store.put_tensor(key, tensor) == 0
    target = torch.zeros(10, 10)
    assert world.store.get_tensor_into_cuda(key, target) == 400
    assert same(target, tensor)
    assert world.store.get_tensor_into_cuda(key, torch.zeros(5, 20)) == -600


@pytest.mark.parametrize("dimension", [0, 1])
def test_shards_of_tensor_parallelism(world: World, dimension: int) -> None:
    tensor, key = torch.arange(32).reshape(4, 8), world.key()
    assert world.store.put_tensor_with_tp(key, tensor, tp_size=4, split_dim=dimension) == 0
    shards = [world.store.get_tensor_with_tp(key, rank, 4, dimension) for rank in range(4)]
    assert same(torch.cat(shards, dimension), tensor)
    assert world.store.is_exist(f"{key}_tp_3") == 1
    assert world.store.get_tensor_with_tp(key, 4, 4) is None
    assert world.store.put_tensor_with_tp(world.key(), tensor, tp_size=3, split_dim=5) == -600


def test_shards_from_memory(world: World) -> None:
    tensor, key = torch.arange(32).reshape(4, 8), world.key()
    assert world.store.put_tensor(key, tensor) == 0
    memory = world.memory(1024)
    world.store.get_tensor_into(key, memory.address, memory.size)
    other = world.key()
    size = world.store.get_size(key)
    assert world.store.put_tensor_with_tp_from(other, memory.address, size, tp_size=2, split_dim=1) == 0
    target = world.memory(1024)
    shard = world.store.get_tensor_with_tp_into(other, target.address, 1024, tp_rank=1, tp_size=2)
    assert same(shard, tensor[:, 4:])


def test_a_full_tensor_is_made_of_the_shards_that_ranks_wrote(world: World) -> None:
    tensor, key = torch.arange(32).reshape(4, 8), world.key()
    for rank, shard in enumerate(tensor.chunk(2, dim=1)):
        assert world.store.put_tensor_with_parallelism(key, shard, parallelism(tp(rank, 2, 1))) == 0
    target = store_module.ReadTarget(mode="full")
    assert same(world.reader.get_tensor_with_parallelism(key, target), tensor)
    shard = store_module.ReadTarget(mode="shard", parallelism=parallelism(tp(1, 2, 1)))
    assert same(world.store.get_tensor_with_parallelism(key, shard), tensor[:, 4:])
    memory = world.memory(1024)
    assert same(world.store.get_tensor_with_parallelism_into(key, memory.address, 1024, target), tensor)
    assert world.store.get_tensor_with_parallelism_into(key, memory.address, 100, target) is None


def test_with_more_axes_the_shard_is_cut_from_the_full_tensor(world: World) -> None:
    tensor, key = torch.arange(32).reshape(4, 8), world.key()
    axes = [parallelism(dp(1, 2), tp(rank, 2, 0)) for rank in range(2)]
    assert world.store.batch_put_tensor_with_parallelism([key, key], [tensor, tensor], axes) == [0, 0]
    shard = store_module.ReadTarget(mode="shard", parallelism=axes[1])
    assert same(world.store.get_tensor_with_parallelism(key, shard), tensor[2:])
    assert same(world.store.get_tensor_with_parallelism(key, store_module.ReadTarget(mode="full")), tensor)


def test_a_missing_shard_makes_no_tensor(world: World) -> None:
    key = world.key()
    assert world.store.put_tensor_with_parallelism(key, torch.ones(2), parallelism(tp(0, 2))) == 0
    assert world.store.get_tensor_with_parallelism(key, store_module.ReadTarget(mode="full")) is None


def test_writer_partitions(world: World) -> None:
    tensor, key = torch.arange(8), world.key()
    for rank in range(2):
        assert world.store.put_tensor_with_parallelism(key, tensor, writer_partition=(rank, 2, 0)) == 0
    assert same(world.store.get_tensor_with_tp(key, 1, 2), tensor[4:])
    both = world.store.put_tensor_with_parallelism(key, tensor, parallelism(tp(0, 2)), writer_partition=(0, 2, 0))
    assert both == -600


def test_without_parallelism_it_is_a_plain_tensor(world: World) -> None:
    tensor, key = torch.arange(8), world.key()
    assert world.store.put_tensor_with_parallelism(key, tensor) == 0
    assert same(world.store.get_tensor_with_parallelism(key), tensor)
    assert same(world.store.get_tensor_with_parallelism(key, store_module.ReadTarget(mode="full")), tensor)
    assert world.store.upsert_tensor_with_parallelism(key, tensor + 1) == 0
    assert same(world.store.get_tensor(key), tensor + 1)


def test_safetensors(world: World, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    tensor, key, path = torch.randn(5, 5), world.key(), str(tmp_path / "one.safetensors")
    assert world.store.put_tensor(key, tensor) == 0
    assert world.store.save_tensor_to_safetensor(key, path) == 0
    assert world.store.remove(key, True) == 0
    assert same(world.store.load_tensor_from_safetensor(key, path), tensor)
    assert same(world.store.get_tensor(key), tensor)
    assert world.store.save_tensor_to_safetensor(world.key(), path) == -704
    assert world.store.load_tensor_from_safetensor(key, str(tmp_path / "none")) is None


def test_lists_of_different_lengths_are_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    keys, memory, tensor = world.keys(2), world.memory(1024), torch.arange(4)
    store, address = world.store, memory.address
    for key in keys:
        assert store.put_tensor(key, tensor) == 0
    target = store_module.ReadTarget()
    for found in (
        store.batch_get_tensor_into(keys, [address], [1024]),
        store.batch_get_tensor_into(keys, [address, address], [1024]),
        store.batch_get_tensor_with_tp_into(keys, [address], [1024], 0, 2),
        store.batch_get_tensor_with_parallelism(keys, [target]),
        store.batch_get_tensor_with_parallelism_into(keys, [address] * 2, [1024] * 2, [target]),
        store.batch_get_tensor_with_parallelism_into(keys, [address], [1024] * 2),
    ):
        assert found == [None, None]
    for codes in (
        store.batch_put_tensor(keys, [tensor]),
        store.batch_get_tensor_into_cuda(keys, [tensor]),
        store.batch_put_tensor_from(keys, [address], [1024]),
        store.batch_put_tensor_with_tp(keys, [tensor]),
        store.batch_put_tensor_with_tp_from(keys, [address], [1024]),
        store.batch_put_tensor_with_parallelism(keys, [tensor] * 2, [None]),
        store.batch_put_tensor_with_parallelism_from(keys, [address], [1024, 1024]),
        store.batch_upsert_tensor_with_parallelism_from(keys, [address], [1024]),
    ):
        assert codes == [-600, -600]
    assert caplog.text.count("expected lists of one length") == 14
    assert memory.content == b"\xa5" * 1024


@pytest.mark.parametrize(
    ("partition", "said"),
    [
        ((0, 0, 0), "a tensor of shape (8,) has no 0 shards along dimension 0"),
        ((0, -1, 0), "a tensor of shape (8,) has no -1 shards along dimension 0"),
        ((2, 2, 0), "expected a rank of 0 to 1, got 2"),
        ((0, 2, 1), "a tensor of shape (8,) has no 2 shards along dimension 1"),
        ((1, 2), "writer_partition: expected (rank, size, split_dim), got (1, 2)"),
        ("half", "writer_partition: expected (rank, size, split_dim), got 'half'"),
    ],
)
def test_a_partition_that_there_is_not(
    world: World, caplog: pytest.LogCaptureFixture, partition: Any, said: str
) -> None:
    key = world.key()
    assert world.store.put_tensor_with_parallelism(key, torch.arange(8), writer_partition=partition) == -600
    assert said in caplog.text
    assert world.store.remove_by_regex(f"^{key}") == 0


def test_shards_of_what_is_no_tensor_or_no_number_of_them(world: World, caplog: pytest.LogCaptureFixture) -> None:
    assert world.store.put_tensor_with_tp(world.key(), None, tp_size=2) == -600
    assert "expected a torch.Tensor, got NoneType" in caplog.text
    axes = parallelism(dp(0, 2), tp(0, 0))
    assert world.store.put_tensor_with_parallelism(world.key(), torch.arange(8), axes) == -600
    assert "has no 0 shards" in caplog.text


def test_a_file_that_is_no_safetensors_file(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("safetensors")
    path, key = tmp_path / "text", world.key()
    path.write_text("this is no file of tensors")
    assert world.store.load_tensor_from_safetensor(key, str(path)) is None
    assert f"load_tensor_from_safetensor: {path}" in caplog.text
    assert world.store.is_exist(key) == 0
    assert world.store.put_tensor(key, torch.arange(8)) == 0
    assert world.store.save_tensor_to_safetensor(key, str(tmp_path / "no" / "folder")) == -1103


def groups_of(world: World, keys: list[str]) -> list[str]:
    return [found.group for found in world.store._link.store.describe(keys)]


def test_shards_are_in_the_group_of_their_tensor(world: World) -> None:
    keys, tensors, config = world.keys(2), [torch.arange(8), torch.arange(8) + 8], world.Config()
    config.group_ids = ["one", "two"]
    assert world.store.batch_pub_tensor_with_tp(keys, tensors, config, tp_size=2) == [0, 0]
    assert groups_of(world, [f"{key}_tp_{rank}" for key in keys for rank in range(2)]) == ["one", "one", "two", "two"]
    others = world.keys(2)
    axes = [parallelism(tp(0, 2)), parallelism(tp(1, 2))]
    assert world.store.batch_put_tensor_with_parallelism(others, tensors, axes, config) == [0, 0]
    assert groups_of(world, [f"{others[0]}_tp_0", f"{others[1]}_tp_1"]) == ["one", "two"]


def encoded(world: World, *tensors: Any) -> tuple[list[int], list[int]]:
    """Where tensors lie in memory, as get_tensor_into leaves them, and how long they are."""
    addresses, sizes = [], []
    for tensor in tensors:
        key, memory = world.key(), world.memory(1024)
        assert world.store.put_tensor(key, tensor) == 0
        assert same(world.store.get_tensor_into(key, memory.address, 1024), tensor)
        addresses.append(memory.address)
        sizes.append(world.store.get_size(key))
    return addresses, sizes


def test_shards_are_objects_of_their_own(world: World) -> None:
    tensor, key = torch.arange(8), world.key()
    for rank in range(2):
        assert world.store.put_tensor_with_parallelism(key, tensor[4 * rank :][:4], parallelism(tp(rank, 2))) == 0
    assert world.store.batch_is_exist([key, f"{key}_tp_0", f"{key}_tp_1", f"{key}_shards"]) == [0, 1, 1, 1]
    assert world.store.remove(key, True) == -704
    assert world.store.remove_by_regex(f"^{key}_(tp_|shards$)", True) == 3


def test_a_config_keeps_shards_as_it_says(world: World) -> None:
    tensor, key, config = torch.arange(12).reshape(2, 6), world.key(), world.Config()
    config.with_hard_pin = True
    assert world.store.pub_tensor_with_tp(key, tensor, config, tp_size=2, split_dim=1) == 0
    assert same(world.reader.get_tensor_with_tp(key, 1, 2), tensor[:, 3:])
    assert [found.hard_pinned for found in world.store._link.store.describe([f"{key}_tp_0", f"{key}_tp_1"])] == [
        True
    ] * 2


def test_an_upsert_from_memory_replaces_what_a_put_leaves(world: World) -> None:
    keys, old = world.keys(2), torch.arange(4)
    addresses, sizes = encoded(world, old + 10, old + 20)
    assert world.store.batch_put_tensor(keys, [old, old]) == [0, 0]
    assert world.store.batch_put_tensor_from(keys, addresses, sizes) == [0, 0]
    assert same(world.store.get_tensor(keys[0]), old)
    assert world.store.upsert_tensor_from(keys[0], addresses[0], sizes[0]) == 0
    assert same(world.store.get_tensor(keys[0]), old + 10)
    assert world.store.batch_upsert_tensor_from(keys, addresses[::-1], [sizes[1], sizes[0] - 1]) == [0, -600]
    assert same(world.store.get_tensor(keys[0]), old + 20)
    assert same(world.store.get_tensor(keys[1]), old)


def test_a_batch_of_tensors_in_shards(world: World) -> None:
    keys, tensors = world.keys(2), [torch.arange(8), torch.arange(8).reshape(4, 2) + 8]
    assert world.store.batch_put_tensor_with_tp(keys, tensors, tp_size=2) == [0, 0]
    assert all(map(same, world.store.batch_get_tensor_with_tp(keys, 1, 2), [tensors[0][4:], tensors[1][2:]]))
    target = world.memory(1024)
    addresses = [target.address, target.address + 512]
    found = world.store.batch_get_tensor_with_tp_into(keys, addresses, [512, 512], 0, 2)
    assert all(map(same, found, [tensors[0][:4], tensors[1][:2]]))
    assert [start <= tensor.data_ptr() < start + 512 for start, tensor in zip(addresses, found, strict=True)] == [
        True
    ] * 2
    assert world.store.batch_get_tensor_with_tp([keys[0], world.key()], 0, 2)[1] is None


def test_a_batch_of_tensors_from_memory_in_shards(world: World) -> None:
    keys, tensors = world.keys(3), [torch.arange(8), torch.arange(8) + 8]
    addresses, sizes = encoded(world, *tensors)
    codes = world.store.batch_put_tensor_with_tp_from(keys, [*addresses, 4096], [*sizes, 200], tp_size=4)
    assert codes == [0, 0, -600]
    assert all(map(same, world.store.batch_get_tensor_with_tp(keys[:2], 3, 4), [tensors[0][6:], tensors[1][6:]]))


def test_a_batch_into_memory_and_into_other_tensors(world: World) -> None:
    keys, tensors = world.keys(3), [torch.randn(3, 3), torch.arange(5)]
    assert world.store.batch_put_tensor(keys[:2], tensors) == [0, 0]
    memory = world.memory(1536)
    addresses = [memory.address + 512 * index for index in range(3)]
    first, second, none = world.store.batch_get_tensor_into(keys, addresses, [512] * 3)
    assert same(first, tensors[0])
    assert same(second, tensors[1])
    assert none is None
    targets = [torch.zeros(3, 3), torch.zeros(5), torch.zeros(5)]
    assert world.store.batch_get_tensor_into_cuda(keys, targets) == [36, -600, -704]
    assert same(targets[0], tensors[0])
    assert same(targets[1], torch.zeros(5))


def test_shards_and_full_tensors_of_several_keys(world: World) -> None:
    keys, tensors = world.keys(3), [torch.arange(8), torch.arange(8).reshape(2, 4)]
    for rank in range(2):
        shards = [tensor.chunk(2)[rank] for tensor in tensors]
        axes = [parallelism(tp(rank, 2))] * 2
        assert world.store.batch_upsert_tensor_with_parallelism(keys[:2], shards, axes) == [0, 0]
    full = store_module.ReadTarget(mode="full")
    shard = store_module.ReadTarget(mode="shard", parallelism=parallelism(tp(1, 2)))
    one, two, none = world.reader.batch_get_tensor_with_parallelism(keys, [full, shard, full])
    assert same(one, tensors[0])
    assert same(two, tensors[1][1:])
    assert none is None
    memory = world.memory(1536)
    addresses = [memory.address + 512 * index for index in range(3)]
    one, two, none = world.store.batch_get_tensor_with_parallelism_into(
        keys, addresses, [512, 512, 512], [full, shard, full]
    )
    assert same(one, tensors[0])
    assert same(two, tensors[1][1:])
    assert addresses[1] <= two.data_ptr() < addresses[2]
    assert none is None
    assert memory.content[1024:] == b"\xa5" * 512


@pytest.mark.parametrize("name", ["put_tensor_with_parallelism_from", "upsert_tensor_with_parallelism_from"])
def test_shards_from_memory_by_parallelism(world: World, name: str) -> None:
    key, others, tensor = world.key(), world.keys(2), torch.arange(8)
    (whole, left, right), sizes = encoded(world, tensor, tensor[:4], tensor[4:])
    one, several = getattr(world.store, name), getattr(world.store, f"batch_{name}")
    assert several([key, key], [left, right], sizes[1:], [parallelism(tp(0, 2)), parallelism(tp(1, 2))]) == [0, 0]
    assert same(world.store.get_tensor_with_parallelism(key, store_module.ReadTarget(mode="full")), tensor)
    for rank in range(2):
        assert one(others[0], whole, sizes[0], writer_partition=store_module.WriterPartition(rank, 2)) == 0
    assert same(world.store.get_tensor_with_parallelism(others[0], store_module.ReadTarget(mode="full")), tensor)
    assert one(others[1], left, sizes[1]) == 0
    assert one(others[1], right, sizes[2]) == 0
    assert same(world.store.get_tensor(others[1]), tensor[4:] if name.startswith("upsert") else tensor[:4])
    assert one(world.key(), left, sizes[1] - 1) == -600
