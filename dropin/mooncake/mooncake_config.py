"""The configuration of a store from a file or the environment, as upstream's clients read it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mooncake._settings import DEFAULT_MASTER, from_environment, size_of

DEFAULT_SEGMENT_BYTES: Final = 3_355_443_200
DEFAULT_BUFFER_BYTES: Final = 1 << 30


@dataclass(frozen=True, kw_only=True)
class MooncakeConfig:
    """What `setup` takes, by its usual names."""

    local_hostname: str = "localhost"
    metadata_server: str = "P2PHANDSHAKE"
    global_segment_size: int = DEFAULT_SEGMENT_BYTES
    local_buffer_size: int = DEFAULT_BUFFER_BYTES
    protocol: str = "tcp"
    device_name: str = ""
    master_server_address: str = DEFAULT_MASTER

    @staticmethod
    def from_file(file_path: str) -> MooncakeConfig:
        """Reads a JSON file.

        Raises:
            ValueError: it has no master_server_address.
        """
        known = json.loads(Path(file_path).read_text())
        if not known.get("master_server_address"):
            raise ValueError(f"{file_path}: expected master_server_address, there is none")
        return MooncakeConfig(**_converted({name: known[name] for name in _FIELDS if name in known}))

    @staticmethod
    def load_from_env() -> MooncakeConfig:
        """The file that MOONCAKE_CONFIG_PATH names; without one, MOONCAKE_MASTER and the other variables.

        Raises:
            ValueError: neither is set.
        """
        path = os.environ.get("MOONCAKE_CONFIG_PATH")
        if path:
            return MooncakeConfig.from_file(path)
        if not os.environ.get("MOONCAKE_MASTER"):
            raise ValueError("neither the environment variable MOONCAKE_CONFIG_PATH nor MOONCAKE_MASTER is set")
        found = from_environment()
        return MooncakeConfig(**_converted({name: found[name] for name in _FIELDS if name in found}))


_FIELDS: Final = tuple(MooncakeConfig.__dataclass_fields__)


def _converted(values: dict[str, Any]) -> dict[str, Any]:
    return {name: size_of(value) if name.endswith("_size") else value for name, value in values.items()}
