"""Shards of a tensor by any axes of parallelism: who wrote what, and the whole put together again."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mooncake._arguments import each, of_one_length, the_keys
from mooncake._codes import Code
from mooncake._replicas import DEFAULT, ReplicateConfig, groups_fit, of_some
from mooncake._tensor_format import encode, torch
from mooncake._tensors import Ints, TensorCalls, shard_key, split

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger("mooncake.store")


@dataclass
class ParallelAxis:
    """One axis of a shard's identity."""

    kind: str = ""
    """tp, dp, ep or pp."""
    rank: int = 0
    size: int = 1
    split_dim: int | None = None
    """Along which dimension the axis cuts the tensor; None where it does not."""
    expert_id: int | None = None
    stage_id: int | None = None


@dataclass
class TensorParallelism:
    """A shard's identity: its axes, in order."""

    axes: list[ParallelAxis] = field(default_factory=list)


@dataclass
class ReadTarget:
    """What of a tensor is wanted: `as_stored`, the `shard` of a parallelism, or the `full` tensor."""

    mode: str = "as_stored"
    parallelism: TensorParallelism | None = None


@dataclass
class WriterPartition:
    """Of a full tensor, the shard of a rank along a dimension."""

    rank: int
    size: int
    split_dim: int = 0


class ParallelismCalls(TensorCalls):
    """A shard is an object of its own; beside it an index says how many there are along each axis."""

    def put_tensor_with_parallelism(
        self,
        key: str,
        tensor: Tensor,
        parallelism: TensorParallelism | None = None,
        config: ReplicateConfig = DEFAULT,
        writer_partition: Any = None,
    ) -> int:
        """Stores a tensor, or a shard: given as it is for a single axis, cut from the full tensor where there are more axes
        and one of them is tp, or where `writer_partition` says (rank, size, split_dim)."""
        return self.batch_put_tensor_with_parallelism([key], [tensor], [parallelism], config, [writer_partition])[0]

    def batch_put_tensor_with_parallelism(
        self,
        keys: Sequence[str],
        tensors_list: Sequence[Tensor],
        parallelisms: Sequence[TensorParallelism | None] | None = None,
        config: ReplicateConfig = DEFAULT,
        writer_partitions: Sequence[Any] | None = None,
    ) -> list[int]:
        """As put_tensor_with_parallelism, for several."""
        return self._put_parallel(keys, tensors_list, parallelisms, config, writer_partitions, upsert=False)

    def upsert_tensor_with_parallelism(
        self,
        key: str,
        tensor: Tensor,
        parallelism: TensorParallelism | None = None,
        config: ReplicateConfig = DEFAULT,
        writer_partition: Any = None,
    ) -> int:
        """As put_tensor_with_parallelism, also in place of an older one."""
        return self.batch_upsert_tensor_with_parallelism([key], [tensor], [parallelism], config, [writer_partition])[0]

    def batch_upsert_tensor_with_parallelism(
        self,
        keys: Sequence[str],
        tensors_list: Sequence[Tensor],
        parallelisms: Sequence[TensorParallelism | None] | None = None,
        config: ReplicateConfig = DEFAULT,
        writer_partitions: Sequence[Any] | None = None,
    ) -> list[int]:
        """As upsert_tensor_with_parallelism, for several."""
        return self._put_parallel(keys, tensors_list, parallelisms, config, writer_partitions, upsert=True)

    def put_tensor_with_parallelism_from(
        self,
        key: str,
        buffer_ptr: int,
        size: int,
        parallelism: TensorParallelism | None = None,
        config: ReplicateConfig = DEFAULT,
        writer_partition: Any = None,
    ) -> int:
        """As put_tensor_with_parallelism, of a tensor in registered memory as get_tensor_into left it."""
        return self.batch_put_tensor_with_parallelism_from(
            [key], [buffer_ptr], [size], [parallelism], config, [writer_partition]
        )[0]

    def batch_put_tensor_with_parallelism_from(
        self,
        keys: Sequence[str],
        buffer_ptrs: Ints,
        sizes: Ints,
        parallelisms: Sequence[TensorParallelism | None] | None = None,
        config: ReplicateConfig = DEFAULT,
        writer_partitions: Sequence[Any] | None = None,
    ) -> list[int]:
        """As put_tensor_with_parallelism_from, for several."""
        return self._put_parallel_from(keys, buffer_ptrs, sizes, parallelisms, config, writer_partitions, upsert=False)

    def upsert_tensor_with_parallelism_from(
        self,
        key: str,
        buffer_ptr: int,
        size: int,
        parallelism: TensorParallelism | None = None,
        config: ReplicateConfig = DEFAULT,
        writer_partition: Any = None,
    ) -> int:
        """As put_tensor_with_parallelism_from, also in place of an older one."""
        return self.batch_upsert_tensor_with_parallelism_from(
            [key], [buffer_ptr], [size], [parallelism], config, [writer_partition]
        )[0]

    def batch_upsert_tensor_with_parallelism_from(
        self,
        keys: Sequence[str],
        buffer_ptrs: Ints,
        sizes: Ints,
        parallelisms: Sequence[TensorParallelism | None] | None = None,
        config: ReplicateConfig = DEFAULT,
        writer_partitions: Sequence[Any] | None = None,
    ) -> list[int]:
        """As upsert_tensor_with_parallelism_from, for several."""
        return self._put_parallel_from(keys, buffer_ptrs, sizes, parallelisms, config, writer_partitions, upsert=True)

    def get_tensor_with_parallelism(self, key: str, target: ReadTarget | None = None) -> Tensor | None:
        """A tensor as it was stored, one of its shards, or the full tensor made of them; None when something is missing."""
        if target is None or (target.mode == "as_stored" and target.parallelism is None):
            return self.get_tensor(key)
        if target.mode == "full":
            return self._full(key)
        if target.parallelism is None:
            return None
        return self.get_tensor(key_of(key, target.parallelism.axes))

    def batch_get_tensor_with_parallelism(
        self, keys: Sequence[str], targets: Sequence[ReadTarget | None] | None = None
    ) -> list[Tensor | None]:
        """As get_tensor_with_parallelism, for several."""
        wanted = the_keys(keys)
        targets = targets or [None] * len(wanted)
        if not of_one_length(wanted, targets):
            return [None] * len(wanted)
        return [self.get_tensor_with_parallelism(key, target) for key, target in zip(wanted, targets, strict=True)]

    def get_tensor_with_parallelism_into(
        self, key: str, buffer_ptr: int, size: int, target: ReadTarget | None = None
    ) -> Tensor | None:
        """As get_tensor_with_parallelism, in registered memory, with its header before it."""
        found = self.get_tensor_with_parallelism(key, target)
        if found is None:
            return None
        pieces, _ = encode(found)
        length = sum(piece.nbytes for piece in pieces)
        memory = self._registered.view(buffer_ptr, length) if length <= size else None
        if memory is None:
            return None
        memory[:] = b"".join(pieces)
        return self._tensor_at(buffer_ptr, length)

    def batch_get_tensor_with_parallelism_into(
        self, keys: Sequence[str], buffer_ptrs: Ints, sizes: Ints, targets: Sequence[ReadTarget | None] | None = None
    ) -> list[Tensor | None]:
        """As get_tensor_with_parallelism_into, for several."""
        wanted = the_keys(keys)
        targets = targets or [None] * len(wanted)
        if not of_one_length(wanted, buffer_ptrs, sizes, targets):
            return [None] * len(wanted)
        plan = zip(wanted, buffer_ptrs, sizes, targets, strict=True)
        return [self.get_tensor_with_parallelism_into(*row) for row in plan]

    def _put_parallel_from(
        self,
        keys: Sequence[str],
        addresses: Ints,
        sizes: Ints,
        parallelisms: Sequence[TensorParallelism | None] | None,
        config: ReplicateConfig,
        partitions: Sequence[Any] | None,
        *,
        upsert: bool,
    ) -> list[int]:
        wanted = the_keys(keys)
        if not of_one_length(wanted, addresses, sizes):
            return each(Code.INVALID_PARAMS, wanted)
        tensors = [self._tensor_at(*memory) for memory in zip(addresses, sizes, strict=True)]
        return self._put_parallel(wanted, tensors, parallelisms, config, partitions, upsert=upsert)

    def _put_parallel(
        self,
        keys: Sequence[str],
        tensors: Sequence[Any],
        parallelisms: Sequence[TensorParallelism | None] | None,
        config: ReplicateConfig,
        partitions: Sequence[Any] | None,
        *,
        upsert: bool,
    ) -> list[int]:
        wanted = the_keys(keys)
        parallelisms = parallelisms or [None] * len(wanted)
        partitions = partitions or [None] * len(wanted)
        if not of_one_length(wanted, tensors, parallelisms, partitions) or not groups_fit(config, wanted):
            return each(Code.INVALID_PARAMS, wanted)
        plan = zip(wanted, tensors, parallelisms, partitions, strict=True)
        return [self._put_one(*row, of_some(config, [index]), upsert) for index, row in enumerate(plan)]

    def _put_one(
        self,
        key: str,
        tensor: Any,
        parallelism: TensorParallelism | None,
        partition: Any,
        config: ReplicateConfig,
        upsert: bool,
    ) -> int:
        if parallelism is not None and partition is not None:
            return Code.INVALID_PARAMS
        if partition is not None:
            cut = _partition(partition)
            if cut is None:
                return Code.INVALID_PARAMS
            axes = [cut]
        elif parallelism is not None and parallelism.axes:
            axes = parallelism.axes
            cut = next((axis for axis in axes if axis.kind == "tp" and len(axes) > 1), None)
        else:
            return self._put_tensors([key], [tensor], config, upsert=upsert)[0]
        if cut is not None and (tensor := _shard(tensor, cut)) is None:
            return Code.INVALID_PARAMS
        code = self._put_tensors([key_of(key, axes)], [tensor], config, upsert=upsert)[0]
        if code == Code.OK:
            code = self._put([_index_key(key)], [[memoryview(_index(axes))]], config, upsert=upsert)[0]
        return code

    def _full(self, key: str) -> Tensor | None:
        """The tensor itself, or what its shards make together."""
        index = self.get(_index_key(key))
        if not index:
            return self.get_tensor(key)
        axes = [ParallelAxis(**axis) for axis in json.loads(index)]
        return self._joined(key, axes, 0)

    def _joined(self, key: str, axes: list[ParallelAxis], place: int) -> Tensor | None:
        """The shards of all ranks of the axes from `place` on, joined; of an axis that does not cut, those of any rank."""
        if place == len(axes):
            return self.get_tensor(key_of(key, axes))
        axis = axes[place]
        parts = []
        for rank in range(axis.size):
            ranked = [*axes[:place], replace(axis, rank=rank), *axes[place + 1 :]]
            part = self._joined(key, ranked, place + 1)
            if axis.split_dim is None:
                if part is not None:
                    return part
            elif part is None:
                return None
            else:
                parts.append(part)
        joined: Tensor | None = torch().cat(parts, dim=axis.split_dim) if parts else None
        return joined


def key_of(key: str, axes: Sequence[ParallelAxis]) -> str:
    """The key of a shard; of a single tp axis as with the calls for tp alone."""
    if len(axes) == 1 and axes[0].kind == "tp":
        return shard_key(key, axes[0].rank, axes[0].size)
    return key + "".join(f"_{axis.kind}_{axis.rank}of{axis.size}" for axis in axes)


def _index_key(key: str) -> str:
    return f"{key}_shards"


def _index(axes: Sequence[ParallelAxis]) -> bytes:
    """What is the same for all shards of a tensor."""
    return json.dumps([{"kind": axis.kind, "size": axis.size, "split_dim": axis.split_dim} for axis in axes]).encode()


def _shard(tensor: Any, axis: ParallelAxis) -> Any:
    """The rank's part of a full tensor; None where there is none, and the log says so."""
    shards = split(tensor, axis.size, axis.split_dim or 0)
    if shards is None:
        return None
    if not 0 <= axis.rank < axis.size:
        _log.error("expected a rank of 0 to %d, got %d", axis.size - 1, axis.rank)
        return None
    return shards[axis.rank]


def _partition(value: Any) -> ParallelAxis | None:
    """None where it is no writer partition, and the log says so."""
    try:
        rank, size, split_dim = value if isinstance(value, tuple) else (value.rank, value.size, value.split_dim)
    except (AttributeError, ValueError):
        _log.error("writer_partition: expected (rank, size, split_dim), got %r", value)
        return None
    return ParallelAxis("tp", rank, size, split_dim)
