"""PyTorch tensors as objects, whole or cut into the shards of tensor parallelism."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mooncake._arguments import each, first_failure, of_one_length, spread, the_key, the_keys
from mooncake._codes import Code
from mooncake._ranges import RangeCalls
from mooncake._replicas import DEFAULT, ReplicateConfig, groups_fit, of_some
from mooncake._tensor_format import blank, decode, encode, over, torch
from mooncake_core.store.client import Pieces
from mooncake_core.transfer.addresses import view_of

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger("mooncake.store")

Ints = Sequence[int]


class TensorCalls(RangeCalls):
    """A tensor keeps its type and shape. What is read is on the CPU."""

    def put_tensor(self, key: str, tensor: Tensor) -> int:
        """Stores a tensor."""
        return self.batch_put_tensor([key], [tensor])[0]

    def batch_put_tensor(self, keys: Sequence[str], tensors_list: Sequence[Tensor]) -> list[int]:
        """As put_tensor, for several."""
        return self._put_tensors(keys, tensors_list, DEFAULT)

    def pub_tensor(self, key: str, tensor: Tensor, config: ReplicateConfig = DEFAULT) -> int:
        """As put_tensor, kept as `config` says."""
        return self.batch_pub_tensor([key], [tensor], config)[0]

    def batch_pub_tensor(
        self, keys: Sequence[str], tensors_list: Sequence[Tensor], config: ReplicateConfig = DEFAULT
    ) -> list[int]:
        """As pub_tensor, for several."""
        return self._put_tensors(keys, tensors_list, config)

    def upsert_tensor(self, key: str, tensor: Tensor) -> int:
        """Stores a tensor, also in place of an older one."""
        return self.batch_upsert_tensor([key], [tensor])[0]

    def batch_upsert_tensor(self, keys: Sequence[str], tensors_list: Sequence[Tensor]) -> list[int]:
        """As upsert_tensor, for several."""
        return self._put_tensors(keys, tensors_list, DEFAULT, upsert=True)

    def upsert_pub_tensor(self, key: str, tensor: Tensor, config: ReplicateConfig = DEFAULT) -> int:
        """As upsert_tensor, kept as `config` says."""
        return self.batch_upsert_pub_tensor([key], [tensor], config)[0]

    def batch_upsert_pub_tensor(
        self, keys: Sequence[str], tensors_list: Sequence[Tensor], config: ReplicateConfig = DEFAULT
    ) -> list[int]:
        """As upsert_pub_tensor, for several."""
        return self._put_tensors(keys, tensors_list, config, upsert=True)

    def get_tensor(self, key: str) -> Tensor | None:
        """A tensor; None when there is none of that key."""
        return self.batch_get_tensor([key])[0]

    def batch_get_tensor(self, keys: Sequence[str]) -> list[Tensor | None]:
        """As get_tensor, for several."""
        wanted = the_keys(keys)
        encoded: list[Any] = [None] * len(wanted)

        def destination(index: int, size_bytes: int) -> Pieces:
            encoded[index] = blank(size_bytes)
            return [view_of(encoded[index].data_ptr(), size_bytes)]

        codes = self._get(wanted, destination)
        return [decode(memory) if code > 0 else None for memory, code in zip(encoded, codes, strict=True)]

    def get_tensor_into(self, key: str, buffer_ptr: int, size: int) -> Tensor | None:
        """A tensor that lies in registered memory, with its header before it; None when there is none of that key."""
        return self.batch_get_tensor_into([key], [buffer_ptr], [size])[0]

    def batch_get_tensor_into(self, keys: Sequence[str], buffer_ptrs: Ints, sizes: Ints) -> list[Tensor | None]:
        """As get_tensor_into, for several."""
        wanted = the_keys(keys)
        if not of_one_length(wanted, buffer_ptrs, sizes):
            return [None] * len(wanted)
        read = self.batch_get_into(wanted, buffer_ptrs, sizes)
        return [
            self._tensor_at(address, length) if length > 0 else None
            for address, length in zip(buffer_ptrs, read, strict=True)
        ]

    def get_tensor_into_cuda(self, key: str, tensor: Tensor) -> int:
        """Reads a tensor into one of the same shape and type on any device, through memory of the host; its bytes, or a
        code."""
        return self.batch_get_tensor_into_cuda([key], [tensor])[0]

    def batch_get_tensor_into_cuda(self, keys: Sequence[str], tensors_list: Sequence[Tensor]) -> list[int]:
        """As get_tensor_into_cuda, for several."""
        wanted = the_keys(keys)
        if not of_one_length(wanted, tensors_list):
            return each(Code.INVALID_PARAMS, wanted)
        codes = []
        for target, found in zip(tensors_list, self.batch_get_tensor(wanted), strict=True):
            if found is None:
                codes.append(int(Code.OBJECT_NOT_FOUND))
            elif (found.shape, found.dtype) != (target.shape, target.dtype):
                codes.append(int(Code.INVALID_PARAMS))
            else:
                target.copy_(found)
                codes.append(found.nbytes)
        return codes

    def put_tensor_from(self, key: str, buffer_ptr: int, size: int) -> int:
        """Stores memory that holds a tensor as get_tensor_into left it; `size` counts header and data."""
        return self.batch_put_tensor_from([key], [buffer_ptr], [size])[0]

    def batch_put_tensor_from(self, keys: Sequence[str], buffer_ptrs: Ints, sizes: Ints) -> list[int]:
        """As put_tensor_from, for several."""
        return self._store_encoded(keys, buffer_ptrs, sizes, self.batch_put_from)

    def upsert_tensor_from(self, key: str, buffer_ptr: int, size: int) -> int:
        """As put_tensor_from, also in place of an older one."""
        return self.batch_upsert_tensor_from([key], [buffer_ptr], [size])[0]

    def batch_upsert_tensor_from(self, keys: Sequence[str], buffer_ptrs: Ints, sizes: Ints) -> list[int]:
        """As upsert_tensor_from, for several."""
        return self._store_encoded(keys, buffer_ptrs, sizes, self.batch_upsert_from)

    def put_tensor_with_tp(
        self, key: str, tensor: Tensor, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> int:
        """Cuts a tensor into tp_size shards along a dimension and stores all of them, whatever the rank."""
        return self.batch_put_tensor_with_tp([key], [tensor], tp_rank, tp_size, split_dim)[0]

    def batch_put_tensor_with_tp(
        self,
        base_keys: Sequence[str],
        tensors_list: Sequence[Tensor],
        tp_rank: int = 0,
        tp_size: int = 1,
        split_dim: int = 0,
    ) -> list[int]:
        """As put_tensor_with_tp, for several."""
        return self.batch_pub_tensor_with_tp(base_keys, tensors_list, DEFAULT, tp_rank, tp_size, split_dim)

    def pub_tensor_with_tp(
        self,
        key: str,
        tensor: Tensor,
        config: ReplicateConfig = DEFAULT,
        tp_rank: int = 0,
        tp_size: int = 1,
        split_dim: int = 0,
    ) -> int:
        """As put_tensor_with_tp, kept as `config` says."""
        return self.batch_pub_tensor_with_tp([key], [tensor], config, tp_rank, tp_size, split_dim)[0]

    def batch_pub_tensor_with_tp(
        self,
        base_keys: Sequence[str],
        tensors_list: Sequence[Tensor],
        config: ReplicateConfig = DEFAULT,
        tp_rank: int = 0,
        tp_size: int = 1,
        split_dim: int = 0,
    ) -> list[int]:
        """As pub_tensor_with_tp, for several."""
        wanted = the_keys(base_keys)
        if not of_one_length(wanted, tensors_list) or not groups_fit(config, wanted):
            return each(Code.INVALID_PARAMS, wanted)
        return [
            self._put_shards(key, tensor, of_some(config, [index] * max(1, tp_size)), tp_size, split_dim)
            for index, (key, tensor) in enumerate(zip(wanted, tensors_list, strict=True))
        ]

    def put_tensor_with_tp_from(
        self, key: str, buffer_ptr: int, size: int, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> int:
        """As put_tensor_with_tp, of a tensor in registered memory as get_tensor_into left it."""
        return self.batch_put_tensor_with_tp_from([key], [buffer_ptr], [size], tp_rank, tp_size, split_dim)[0]

    def batch_put_tensor_with_tp_from(
        self,
        base_keys: Sequence[str],
        buffer_ptrs: Ints,
        sizes: Ints,
        tp_rank: int = 0,
        tp_size: int = 1,
        split_dim: int = 0,
    ) -> list[int]:
        """As put_tensor_with_tp_from, for several."""
        wanted = the_keys(base_keys)
        if not of_one_length(wanted, buffer_ptrs, sizes):
            return each(Code.INVALID_PARAMS, wanted)
        tensors = [self._tensor_at(*memory) for memory in zip(buffer_ptrs, sizes, strict=True)]
        return [
            int(Code.INVALID_PARAMS) if tensor is None else self._put_shards(key, tensor, DEFAULT, tp_size, split_dim)
            for key, tensor in zip(wanted, tensors, strict=True)
        ]

    def get_tensor_with_tp(self, key: str, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0) -> Tensor | None:
        """The shard of a rank; None when it is not there."""
        return self.batch_get_tensor_with_tp([key], tp_rank, tp_size)[0]

    def batch_get_tensor_with_tp(
        self, base_keys: Sequence[str], tp_rank: int = 0, tp_size: int = 1
    ) -> list[Tensor | None]:
        """As get_tensor_with_tp, for several."""
        return self.batch_get_tensor([shard_key(key, tp_rank, tp_size) for key in the_keys(base_keys)])

    def get_tensor_with_tp_into(
        self, key: str, buffer_ptr: int, size: int, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> Tensor | None:
        """As get_tensor_with_tp, in registered memory."""
        return self.batch_get_tensor_with_tp_into([key], [buffer_ptr], [size], tp_rank, tp_size)[0]

    def batch_get_tensor_with_tp_into(
        self, base_keys: Sequence[str], buffer_ptrs: Ints, sizes: Ints, tp_rank: int = 0, tp_size: int = 1
    ) -> list[Tensor | None]:
        """As get_tensor_with_tp_into, for several."""
        keys = [shard_key(key, tp_rank, tp_size) for key in the_keys(base_keys)]
        return self.batch_get_tensor_into(keys, buffer_ptrs, sizes)

    def save_tensor_to_safetensor(self, key: str, file_name: str | None = None) -> int:
        """Writes a stored tensor to a safetensors file, under the name of its key."""
        tensor = self.get_tensor(key)
        if tensor is None:
            return Code.OBJECT_NOT_FOUND
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        try:
            save_file({key: tensor}, file_name or f"{key}.safetensors")
        except (OSError, SafetensorError) as error:
            _log.error("save_tensor_to_safetensor: %s", error)
            return Code.FILE_WRITE_FAIL
        return Code.OK

    def load_tensor_from_safetensor(self, key: str | None = None, file_name: str = "") -> Tensor | None:
        """Reads a tensor from a safetensors file and stores it under `key`, else under the file's name: the one called so,
        else the first. None where there is none."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not Path(file_name).is_file():
            _log.error("load_tensor_from_safetensor: there is no file %s", file_name)
            return None
        try:
            found = load_file(file_name)
        except (OSError, SafetensorError) as error:
            _log.error("load_tensor_from_safetensor: %s: %s", file_name, error)
            return None
        name = file_name if key is None else the_key(key)
        if name not in found and key is not None:
            _log.warning("%s has no tensor called %s: its first one is taken", file_name, name)
        tensor: Tensor | None = found.get(name, next(iter(found.values()), None))
        if tensor is not None:
            self.put_tensor(name, tensor)
        return tensor

    def _put_tensors(
        self, keys: Sequence[str], tensors: Sequence[Any], config: ReplicateConfig, *, upsert: bool = False
    ) -> list[int]:
        wanted = the_keys(keys)
        if not of_one_length(wanted, tensors):
            return each(Code.INVALID_PARAMS, wanted)
        encoded = [_encoded(tensor) for tensor in tensors]
        return self._put(wanted, [pieces for pieces, _ in encoded], config, upsert=upsert)

    def _put_shards(self, key: str, tensor: Any, config: ReplicateConfig, tp_size: int, split_dim: int) -> int:
        if tp_size <= 1:
            return self._put_tensors([key], [tensor], config)[0]
        shards = split(tensor, tp_size, split_dim)
        if shards is None:
            return Code.INVALID_PARAMS
        keys = [shard_key(the_key(key), rank, tp_size) for rank in range(tp_size)]
        return first_failure(self._put_tensors(keys, shards, config))

    def _store_encoded(
        self, keys: Sequence[str], buffer_ptrs: Ints, sizes: Ints, store: Callable[..., list[int]]
    ) -> list[int]:
        """Only what is a tensor: else nobody could read it as one."""
        wanted = the_keys(keys)
        if not of_one_length(wanted, buffer_ptrs, sizes):
            return each(Code.INVALID_PARAMS, wanted)
        good = [
            index
            for index, memory in enumerate(zip(buffer_ptrs, sizes, strict=True))
            if self._tensor_at(*memory) is not None
        ]
        chosen = ([values[index] for index in good] for values in (wanted, buffer_ptrs, sizes))
        return spread(len(wanted), good, store(*chosen))

    def _tensor_at(self, address: int, num_bytes: int) -> Tensor | None:
        memory = self._registered.view(address, num_bytes)
        return None if not memory else decode(over(memory))


def _encoded(tensor: Any) -> tuple[Pieces | None, Any]:
    """As encode; None for what cannot be stored, and the log says why."""
    try:
        return encode(tensor)
    except TypeError as error:
        _log.error("%s", error)
        return None, None


def shard_key(key: str, tp_rank: int, tp_size: int) -> str:
    """The key of a rank's shard: upstream's."""
    return key if tp_size <= 1 else f"{key}_tp_{tp_rank}"


def split(tensor: Any, parts: int, dimension: int) -> list[Any] | None:
    """Shards of a tensor along a dimension; None where it cannot be cut so, and the log says it."""
    if not isinstance(tensor, torch().Tensor):
        _log.error("expected a torch.Tensor, got %s", type(tensor).__name__)
        return None
    can_be_cut = parts > 0 and -tensor.dim() <= dimension < tensor.dim()
    shards = list(tensor.chunk(parts, dim=dimension)) if can_be_cut else []
    if len(shards) != parts or not shards:
        _log.error("a tensor of shape %s has no %d shards along dimension %d", tuple(tensor.shape), parts, dimension)
        return None
    return shards
