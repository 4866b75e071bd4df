"""What an instance's hardware can do, as its YAML (`configs/hardware/`) says it: one host, its devices alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta, field

from mooncake_core.config.load import load_record
from mooncake_core.config.rules import Finding
from mooncake_core.config.schema import Count, Section, Size
from mooncake_core.errors import ConfigError

Rate = Annotated[float, Meta(ge=0)]

ELEMENT_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 1, "int8": 1}
"""Of the types that descriptions may name."""
_NEEDED: Final = ("name", "flops_per_s", "device_memory", "device_memory_bytes_per_s", "nic_bytes_per_s", "dram")


class Hardware(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One host that runs one instance."""

    name: str = ""
    devices: Count = 1
    """GPUs, or 1 for the processors of the host together."""
    flops_per_s: dict[str, Rate] = field(default_factory=dict)
    """Of one device, dense, by element type, such as bfloat16."""
    device_memory: Size = 0
    """Of one device: what weights and KV share."""
    device_memory_bytes_per_s: Rate = 0.0
    """Of one device."""
    host_to_device_bytes_per_s: Rate = 0.0
    """Of the host, all its devices together; 0: the device computes in the host's memory, nothing is copied."""
    nic_bytes_per_s: Rate = 0.0
    """Of the host, all NICs together, in each direction."""
    dram: Size = 0
    """Of the host, for the pool."""
    disk: Size = 0
    """Of the host, for the pool."""
    disk_bytes_per_s: Rate = 0.0
    """Reading."""

    @property
    def memory_bytes(self) -> int:
        """Of all devices."""
        return self.devices * self.device_memory

    @property
    def memory_bytes_per_s(self) -> float:
        """Of all devices."""
        return self.devices * self.device_memory_bytes_per_s

    def flops(self, dtype: str) -> float:
        """Per second, of all devices.

        Raises:
            ConfigError: the description has no such element type.
        """
        if dtype not in self.flops_per_s:
            raise ConfigError(
                f"hardware {self.name} has no flops_per_s for {dtype}: it has {', '.join(sorted(self.flops_per_s))}"
            )
        return self.devices * self.flops_per_s[dtype]


def load_hardware(path: Path) -> Hardware:
    """A host's description.

    Raises:
        ConfigError: everything that is wrong, with file, line and field.
    """
    return load_record(path, Hardware, needed=_NEEDED, rules=(_findings,))


def _findings(hardware: Hardware) -> Iterator[Finding]:
    for dtype in hardware.flops_per_s:
        if dtype not in ELEMENT_BYTES:
            yield Finding(f"flops_per_s.{dtype}", f"unknown element type; expected one of {', '.join(ELEMENT_BYTES)}")
    for name in ("device_memory", "device_memory_bytes_per_s", "nic_bytes_per_s"):
        if getattr(hardware, name) == 0:
            yield Finding(name, "expected more than 0")
    if hardware.disk and not hardware.disk_bytes_per_s:
        yield Finding("disk_bytes_per_s", "expected more than 0 where there is a disk")
