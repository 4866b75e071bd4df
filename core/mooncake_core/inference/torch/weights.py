"""A model folder before it is loaded: how large it is, what it is, and whether it can be served. Reads no weights into memory."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import xxhash

from mooncake_core.errors import ModelError, ModelNotFound
from mooncake_core.kvcache.layout import KVLayout

VOLATILE: Final = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"})
_HASH_CHUNK_BYTES: Final = 64 << 20


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model.

    Raises:
        ModelNotFound: there are none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelNotFound(f"{folder} has no *.safetensors: only safetensors models can be served")
    return files


def parameter_count(files: list[Path]) -> int:
    """Number of weights, from the headers of the files."""
    return sum(_elements(tensor) for file in files for name, tensor in _header(file).items() if name != "__metadata__")


def fingerprint(files: list[Path], config: Mapping[str, Any], layout: KVLayout) -> bytes:
    """16 bytes that are equal only for models with interchangeable KV: same weights, config, dtype and layout."""
    digest = hashlib.blake2b(digest_size=16, person=b"mooncake-fp-1")
    lasting = {key: value for key, value in config.items() if key not in VOLATILE}
    digest.update(msgspec.json.encode(lasting, order="deterministic"))
    digest.update(msgspec.json.encode(layout, order="deterministic"))
    digest.update(b"tp=1")
    with ThreadPoolExecutor() as pool:  # xxhash runs without the interpreter lock
        for content in pool.map(_content, files):
            digest.update(content)
    return digest.digest()


def _content(file: Path) -> bytes:
    digest = xxhash.xxh3_128()
    with open(file, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        with memoryview(mapped) as view:
            for start in range(0, len(view), _HASH_CHUNK_BYTES):
                with view[start : start + _HASH_CHUNK_BYTES] as chunk:
                    digest.update(chunk)
    return digest.digest()


def _header(file: Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            return msgspec.json.decode(handle.read(length), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, MemoryError, OverflowError) as error:
        raise ModelError(f"{file} is no safetensors file: {error}") from error


def _elements(tensor: Mapping[str, Any]) -> int:
    count = 1
    for size in tensor["shape"]:
        count *= size
    return count
