"""Making an engine ready, its memory, and what it tells about itself."""

from __future__ import annotations

import json
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

from mooncake._engine_arguments import a_name, a_number, numbers
from mooncake._engine_codes import EngineCode, engine_code
from mooncake._network import (
    OPTIONAL,
    busy_poll_s,
    is_trusted,
    key_file,
    names_in,
    split_hostname,
    tls_config,
    transports_of,
    weights,
)
from mooncake_core.errors import ConfigError, MooncakeError, NotRegistered, OutOfRange
from mooncake_core.roles.context import load_key, tls_files
from mooncake_core.transfer import Endpoint, SharedMemory, Span
from mooncake_core.transfer.addresses import address_of
from mooncake_core.transfer.device_memory import content_of, copy
from mooncake_core.transfer.topology import matrix, read_inventory

P2P: Final = "P2PHANDSHAKE"
DEFAULT_PORT: Final = 12001

_log = logging.getLogger("mooncake.engine")


class InnerTransferEngine:
    """What `get_engine` gives, for `MooncakeDistributedStore.setup`. Keeps the engine alive."""

    def __init__(self, owner: object) -> None:
        self._owner = owner


class EngineLifecycle:
    """The part of an engine that is about itself."""

    def __init__(self) -> None:
        self._endpoint: Endpoint | None = None
        self._end: weakref.finalize[..., Any] | None = None
        self._managed: dict[int, SharedMemory] = {}
        self._lock = threading.Lock()

    def initialize(self, local_hostname: str, metadata_server: str, protocol: str, device_name: str) -> int:
        """Listens at `local_hostname`, the address by which peers reach this process; 0, or a negative code, and the log says
        why. With metadata "P2PHANDSHAKE" the port is a free one (`get_rpc_port`). Another metadata server is never asked: peers
        are, at `local_hostname`'s port (12001 where it has none), so names must be `host:port`.
        """
        host = split_hostname(a_name(local_hostname))
        metadata, protocol = a_name(metadata_server), a_name(protocol)
        devices = a_name(device_name)
        if not metadata:
            _log.error("initialize: expected a metadata server: %s, or what all peers give", P2P)
            return EngineCode.FAILED
        port = 0 if metadata == P2P else host.port or DEFAULT_PORT
        self._close()
        try:
            endpoint = _endpoint(host.host, port, protocol, devices)
        except (ConfigError, OSError) as error:
            _log.error("initialize: %s", error)
            return EngineCode.DNS
        except MooncakeError as error:
            _log.error("initialize: %s", error)
            return engine_code(error)
        self._endpoint = endpoint
        self._end = weakref.finalize(self, endpoint.close)
        return EngineCode.OK

    def initialize_ext(
        self, local_hostname: str, metadata_server: str, protocol: str, device_name: str, metadata_type: str
    ) -> int:
        """As initialize; `metadata_type` names the kind of metadata server, which is never asked."""
        a_name(metadata_type)
        return self.initialize(local_hostname, metadata_server, protocol, device_name)

    def get_rpc_port(self) -> int:
        """The port of this engine's name; 0 before `initialize`."""
        return self._endpoint.port if self._endpoint else 0

    def get_engine(self) -> InnerTransferEngine:
        """For `MooncakeDistributedStore.setup`, which accepts it."""
        return InnerTransferEngine(self)

    def get_engine_ptr(self) -> int:
        """0: there is no engine in C++ that native extensions could call."""
        return 0

    def get_local_topology(self, device_name: str | None = None) -> str:
        """JSON: the RDMA devices that are preferred, and the others, for memory of each NUMA node and GPU; of those named, with
        commas, where some are."""
        inventory = read_inventory()
        named = names_in(device_name or "")

        def listed(devices: Sequence[str]) -> list[str]:
            return [name for name in devices if inventory.has_rdma and (not named or name in named)]

        places = matrix(inventory).items()
        return json.dumps({place: [listed(nics.preferred), listed(nics.secondary)] for place, nics in places})

    def register_memory(self, buffer_addr: int, capacity: int, location: str = "*") -> int:
        """Lets peers read and write [buffer_addr, buffer_addr + capacity); it must stay allocated until it is unregistered.
        0, -7 where a part of it is registered already, -999 for memory that neither the CPU nor a GPU's driver reads."""
        span = Span(a_number(buffer_addr), a_number(capacity))
        a_name(location)
        return self._ask("register_memory", lambda endpoint: _register(endpoint, span))

    def unregister_memory(self, buffer_addr: int) -> int:
        """Takes that back; when it returns, no peer touches the memory any more. -3 where nothing registered begins."""
        address = a_number(buffer_addr)
        return self._ask("unregister_memory", lambda endpoint: endpoint.unregister_memory(address))

    def batch_register_memory(
        self, buffer_addresses: Sequence[int], capacities: Sequence[int], location: str = "*"
    ) -> int:
        """As register_memory for all, or for none where one fails."""
        spans = list(map(Span, numbers(buffer_addresses), numbers(capacities)))
        if len(buffer_addresses) != len(capacities):
            _log.error("batch_register_memory: %d addresses, %d capacities", len(buffer_addresses), len(capacities))
            return EngineCode.FAILED
        done: list[int] = []
        for span in spans:
            code = self.register_memory(span.address, span.length, location)
            if code != EngineCode.OK:
                self.batch_unregister_memory(done)
                return code
            done.append(span.address)
        return EngineCode.OK

    def batch_unregister_memory(self, buffer_addresses: Sequence[int]) -> int:
        """As unregister_memory for all; the first code that is no success."""
        codes = [self.unregister_memory(address) for address in numbers(buffer_addresses)]
        return next((code for code in codes if code != EngineCode.OK), int(EngineCode.OK))

    def allocate_managed_buffer(self, length: int) -> int:
        """The address of new registered memory, which peers on this host reach without a socket; 0 where there is none."""
        made: list[SharedMemory] = []
        num_bytes = max(1, a_number(length))
        if self._ask("allocate_managed_buffer", lambda endpoint: made.append(endpoint.allocate_memory(num_bytes))):
            return 0
        address = address_of(made[0].view)
        with self._lock:
            self._managed[address] = made[0]
        return address

    def free_managed_buffer(self, address: int, length: int) -> int:
        """Gives it back; -3 where nothing was allocated."""
        a_number(length)
        with self._lock:
            memory = self._managed.pop(a_number(address), None)
        if memory is None:
            return EngineCode.NOT_REGISTERED
        return self._ask("free_managed_buffer", lambda endpoint: endpoint.free_memory(memory))

    def write_bytes_to_buffer(self, dest_address: int, text: str, length: int) -> int:
        """Writes the first bytes of a text (UTF-8), or of bytes, to memory of this process."""
        content = text.encode() if isinstance(text, str) else bytes(text)
        view = self._view(a_number(dest_address), a_number(length))
        if view is None or length > len(content):
            _log.error("write_bytes_to_buffer: cannot write %d bytes to %#x", length, dest_address)
            return EngineCode.FAILED
        source = memoryview(content)[:length]
        return self._ask("write_bytes_to_buffer", lambda _: copy([view], [source], write=False))

    def read_bytes_from_buffer(self, source_address: int, length: int) -> bytes:
        """Bytes of memory of this process; none where it cannot be read."""
        view = self._view(a_number(source_address), a_number(length))
        if view is None:
            _log.error("read_bytes_from_buffer: cannot read %d bytes at %#x", length, source_address)
            return b""
        found: list[bytes] = []
        self._ask("read_bytes_from_buffer", lambda _: found.append(content_of(view)))
        return found[0] if found else b""

    def _view(self, address: int, length: int) -> memoryview | None:
        return self._endpoint.view(address, length) if self._endpoint else None

    def _ask(self, what: str, work: Callable[[Endpoint], object]) -> int:
        """0 when work is done, or the code of its failure."""
        endpoint = self._endpoint
        if endpoint is None:
            _log.error("%s: the engine is not initialized: call initialize() first", what)
            return EngineCode.FAILED
        try:
            work(endpoint)
        except OSError as error:
            _log.error("%s: %s", what, error)
            return EngineCode.FAILED
        except _Unreadable as error:
            _log.error("%s: %s", what, error)
            return EngineCode.NOT_SUPPORTED
        except MooncakeError as error:
            log = _log.debug if isinstance(error, NotRegistered) else _log.error
            log("%s: %s", what, error)
            return engine_code(error)
        return EngineCode.OK

    def _close(self) -> None:
        self._endpoint = None
        self._managed.clear()
        if self._end is not None:
            self._end()


class _Unreadable(Exception):
    """Memory that neither the CPU nor a driver reads."""


def _register(endpoint: Endpoint, span: Span) -> None:
    if span.length == 0:
        raise OutOfRange("expected memory of at least one byte")
    try:
        endpoint.register_memory(span)
    except OutOfRange as error:
        raise _Unreadable(str(error)) from error


def _endpoint(host: str, port: int, protocol: str, devices: str) -> Endpoint:
    """One that has the protocol's transports, but for those that this machine has not got."""
    return Endpoint(
        host,
        port=port,
        transports=transports_of(protocol),
        optional=OPTIONAL,
        key=load_key(key_file()),
        tls=tls_files(tls_config()),
        weights=weights(devices),
        insecure=is_trusted(),
        busy_poll_s=busy_poll_s(),
    )
