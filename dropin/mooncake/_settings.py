"""What `setup` is told: positional arguments, keywords, or one dictionary, in upstream's names and in those clients use."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mooncake._arguments import without_effect
from mooncake_core.errors import ConfigError
from mooncake_core.units import parse_size

_log = logging.getLogger("mooncake.store")

DEFAULT_MASTER: Final = "127.0.0.1:7801"
DEFAULT_TENANT: Final = "default"
POSITIONAL: Final = (
    "local_hostname",
    "metadata_server",
    "global_segment_size",
    "local_buffer_size",
    "protocol",
    "rdma_devices",
    "master_server_addr",
    "engine",
    "enable_ssd_offload",
    "ssd_offload_path",
    "tenant_id",
    "enable_client_http_server",
    "client_http_port",
)
ALIASES: Final = {"device_name": "rdma_devices", "master_server_address": "master_server_addr"}
VARIABLES: Final = {
    "LOCAL_HOSTNAME": "local_hostname",
    "MOONCAKE_LOCAL_HOSTNAME": "local_hostname",
    "MOONCAKE_TE_META_DATA_SERVER": "metadata_server",
    "MOONCAKE_GLOBAL_SEGMENT_SIZE": "global_segment_size",
    "MOONCAKE_LOCAL_BUFFER_SIZE": "local_buffer_size",
    "MOONCAKE_PROTOCOL": "protocol",
    "MOONCAKE_DEVICE": "device_name",
    "MOONCAKE_MASTER": "master_server_address",
    "MOONCAKE_ENABLE_SSD_OFFLOAD": "enable_ssd_offload",
    "MOONCAKE_TENANT_ID": "tenant_id",
}
OTHERS: Final = ("ipc_socket_path", "tls_certificate", "tls_key", "tls_ca")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A connection to a pool."""

    local_hostname: str = "127.0.0.1"
    metadata_server: str = "P2PHANDSHAKE"
    """Accepted: the master knows all there is to know."""
    global_segment_size: int = 16 << 20
    """Bytes this process contributes to the pool, 0 for none."""
    local_buffer_size: int = 16 << 20
    """Accepted: bytes move straight to and from the caller's memory."""
    protocol: str = "tcp"
    rdma_devices: str = ""
    master_server_addr: str = ""
    engine: Any = None
    """Accepted: a store has an engine of its own."""
    enable_ssd_offload: bool = False
    """What the segment has no room for goes to an SSD."""
    ssd_offload_path: str = ""
    """Where; else $MOONCAKE_OFFLOAD_FILE_STORAGE_PATH."""
    tenant_id: str = DEFAULT_TENANT
    enable_client_http_server: bool = False
    """Accepted: the master's HTTP tells about all clients."""
    client_http_port: int = 9300
    ipc_socket_path: str = ""
    """Accepted: shared memory finds its way by itself."""
    tls_certificate: str = ""
    """Files of TLS for connections over tcp; else $MOONCAKE_TLS_CERTIFICATE, $MOONCAKE_TLS_KEY and $MOONCAKE_TLS_CA."""
    tls_key: str = ""
    tls_ca: str = ""


_DEFAULTS: Final = Settings()


def settings(positional: Sequence[Any], named: Mapping[str, Any]) -> Settings:
    """The settings in a call of `setup`; what it does not say is the default, the master's address $MOONCAKE_MASTER first.

    Raises:
        TypeError: an argument is unknown, given twice, or of the wrong type; names it.
        ConfigError: a value cannot be used.
    """
    if len(positional) == 1 and isinstance(positional[0], Mapping):
        return settings((), {**_known(positional[0]), **named})
    if len(positional) > len(POSITIONAL):
        raise TypeError(f"setup() takes at most {len(POSITIONAL)} positional arguments, got {len(positional)}")
    given = dict(zip(POSITIONAL, positional, strict=False))
    for name, value in named.items():
        known = ALIASES.get(name, name)
        if known not in POSITIONAL and known not in OTHERS:
            raise TypeError(f"setup() got an unexpected keyword argument '{name}'")
        if known in given:
            raise TypeError(f"setup() got multiple values for argument '{name}'")
        given[known] = value
    values = {name: _convert(name, value) for name, value in given.items()}
    for name in ("enable_client_http_server", "client_http_port"):
        if values.get(name) not in (None, getattr(_DEFAULTS, name)):
            without_effect(name, "the master's HTTP tells about all clients")
    if not values.get("master_server_addr"):
        values["master_server_addr"] = os.environ.get("MOONCAKE_MASTER") or DEFAULT_MASTER
    return Settings(**values)


def from_environment() -> dict[str, str]:
    """What clients' variables say of a store."""
    return {name: os.environ[variable] for variable, name in VARIABLES.items() if os.environ.get(variable)}


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a dictionary says; clients put more into it, which upstream passes over, too."""
    known = {name: value for name, value in given.items() if ALIASES.get(name, name) in (*POSITIONAL, *OTHERS)}
    if len(known) < len(given):
        _log.warning("setup passes over %s", ", ".join(sorted(map(str, given.keys() - known.keys()))))
    return known


def size_of(value: Any) -> int:
    """Bytes in a number or a text; "4gb" is 4 GiB here, as it is everywhere upstream.

    Raises:
        ValueError: it is no size.
    """
    text = str(value).strip()
    return parse_size(re.sub(r"(?i)([kmgt])b?$", r"\1iB", text))


def _convert(name: str, value: Any) -> Any:
    match name:
        case "engine":
            return value
        case "global_segment_size" | "local_buffer_size" | "client_http_port":
            return _size(name, value)
        case "enable_ssd_offload" | "enable_client_http_server":
            return value if isinstance(value, bool) else str(value).lower() in ("1", "true", "yes")
        case "tenant_id":
            return (_text(name, value) if value is not None else "") or DEFAULT_TENANT
        case _:
            return _text(name, value)


def _size(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"setup() expected a number of bytes for '{name}', got {type(value).__name__}")
    if isinstance(value, int) and value < 0:
        raise TypeError(f"setup() expected a number of bytes for '{name}', got {value}")
    try:
        return size_of(value)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"setup() expected a str for '{name}', got {type(value).__name__}")
    return value.strip()
