"""Every error this library raises on purpose, as one tree.

    MooncakeError
    ├── ConfigError             the YAML, a flag or an environment variable is wrong (exit code 2)
    ├── UsageError              a command was called wrongly (exit code 2)
    ├── PluginUnknown           no plugin of that name is installed
    ├── PluginUnavailable       the plugin is known, something it needs is missing
    ├── WireError               control plane
    │   ├── PeerUnreachable     nobody answers at that address (exit code 3)
    │   ├── DeadlineExceeded    no answer in time; also a TimeoutError (exit code 3)
    │   ├── VersionMismatch     the peers speak no common protocol version
    │   ├── AuthenticationFailed  wrong or missing cluster key
    │   ├── ProtocolError       a message that cannot be understood
    │   ├── MemberUnknown       the master does not know this member or this incarnation: join again
    │   └── MemberExists        another live process is the member of that name (exit code 2)
    ├── TransferError           data plane
    │   ├── PathFailed          no path to the peer is left; names peer, path and errno
    │   ├── StaleSegment        the segment or its key was withdrawn: ask for a new descriptor
    │   ├── OutOfRange          the transfer lies outside what was exported
    │   ├── NotRegistered       no memory was registered at that address
    │   └── MemoryOverlaps      a part of the memory is registered already
    ├── StoreError              the pool
    │   ├── NoSpace             back-pressure: the pool is full and nothing may be evicted now
    │   ├── ObjectNotFound
    │   ├── ObjectExists        also: somebody else is writing it
    │   ├── ObjectLeased        a reader still holds a lease
    │   ├── ObjectBusy          an upsert of an object that somebody else is writing
    │   ├── QuotaExceeded       the tenant may not hold more bytes
    │   ├── TenantUnknown       the configuration names tenants, and this is none of them
    │   ├── StaleAllocation     the grant is of an older term or was reclaimed
    │   ├── ChecksumMismatch    bytes read are not the bytes put
    │   ├── NodeNotFound        no node of that name contributes to the pool now
    │   ├── NodeDraining        the node takes no new objects
    │   ├── TaskNotFound        no copy or move of that number waits or runs
    │   └── TooManyTasks        back-pressure: as many copies wait as may
    ├── InvalidRequest          a user's request is wrong: HTTP 400
    │   └── ContextTooLong      prompt and answer exceed the model's context
    ├── RequestRejected         admission said no: HTTP 429 with Retry-After
    ├── ServiceUnavailable      nobody can serve this now: HTTP 503 with Retry-After
    ├── RequestCancelled        the client went away
    ├── ModelError              a model folder that cannot be served (exit code 2)
    │   ├── ModelNotFound
    │   └── ModelTooLarge       with the arithmetic
    ├── EngineError             the engine failed while computing
    └── KVLost                  KV that a computation relied on did not come

Each class has a `code` by which it crosses the wire: `to_wire` and `from_wire` are inverse to each other.
"""

from __future__ import annotations

from typing import Any, ClassVar


class MooncakeError(Exception):
    """Base of all errors raised on purpose; the message says what was expected, found, and what to do."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, **detail: Any) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class ConfigError(MooncakeError):
    """Configuration cannot be used; `problems` holds one line per finding, all of them at once."""

    code = "config"

    def __init__(self, message: str, *, problems: list[str] | None = None) -> None:
        super().__init__(message, problems=problems or [])
        self.problems = problems or [message]


class UsageError(MooncakeError):
    """A command was called wrongly."""

    code = "usage"


class PluginUnknown(MooncakeError):
    """No plugin of that name is installed; the message lists those that are."""

    code = "plugin_unknown"


class PluginUnavailable(MooncakeError):
    """The plugin exists, but something it needs is missing; the message says what to install."""

    code = "plugin_unavailable"


class WireError(MooncakeError):
    """The control plane failed."""

    code = "wire"


class PeerUnreachable(WireError):
    """Nobody answers at that address."""

    code = "peer_unreachable"


class DeadlineExceeded(WireError, TimeoutError):
    """No answer came in time."""

    code = "deadline_exceeded"


class VersionMismatch(WireError):
    """The peers speak no common protocol version."""

    code = "version_mismatch"


class AuthenticationFailed(WireError):
    """The cluster key is wrong or missing."""

    code = "authentication_failed"


class ProtocolError(WireError):
    """A message could not be understood."""

    code = "protocol"


class MemberUnknown(WireError):
    """The master does not know this member in this incarnation; it must join again."""

    code = "member_unknown"


class MemberExists(WireError):
    """Another process is the member of that name, and answers."""

    code = "member_exists"


class TransferError(MooncakeError):
    """The data plane failed."""

    code = "transfer"


class PathFailed(TransferError):
    """No path to the peer is left; the message names peer, path and errno."""

    code = "path_failed"


class StaleSegment(TransferError):
    """The remote segment, or the key it was exported under, is gone."""

    code = "stale_segment"


class OutOfRange(TransferError):
    """The transfer lies outside of what was exported or registered."""

    code = "out_of_range"


class NotRegistered(TransferError):
    """No memory was registered at that address, here or at the peer; the message says which."""

    code = "not_registered"


class MemoryOverlaps(TransferError):
    """A part of the memory is registered already; the message names that part."""

    code = "memory_overlaps"


class StoreError(MooncakeError):
    """The pool refused."""

    code = "store"


class NoSpace(StoreError):
    """Back-pressure: the pool is full and nothing may be evicted at this moment."""

    code = "no_space"


class ObjectNotFound(StoreError):
    """No such object, or no replica of it that can be read."""

    code = "object_not_found"


class ObjectExists(StoreError):
    """The object is there already, or somebody is writing it."""

    code = "object_exists"


class ObjectLeased(StoreError):
    """A reader's lease still covers the object."""

    code = "object_leased"


class ObjectBusy(StoreError):
    """Somebody else is writing the object: upsert it again when that has ended."""

    code = "object_busy"


class QuotaExceeded(StoreError):
    """The tenant would hold more bytes than its quota: remove some of its objects, or raise the quota."""

    code = "quota_exceeded"


class TenantUnknown(StoreError):
    """Tenants are configured (`pool.tenants`), and this is none of them."""

    code = "tenant_unknown"


class StaleAllocation(StoreError):
    """The grant belongs to an older term, an older incarnation, or was reclaimed."""

    code = "stale_allocation"


class ChecksumMismatch(StoreError):
    """The bytes read are not the bytes put."""

    code = "checksum_mismatch"


class NodeNotFound(StoreError):
    """No node of that name contributes to the pool now."""

    code = "node_not_found"


class NodeDraining(StoreError):
    """The node takes no new objects."""

    code = "node_draining"


class TaskNotFound(StoreError):
    """No copy or move of that number waits or runs."""

    code = "task_not_found"


class TooManyTasks(StoreError):
    """Back-pressure: as many copies wait as may."""

    code = "too_many_tasks"


class InvalidRequest(MooncakeError):
    """A user's request is wrong; `param` in the detail names the field."""

    code = "invalid_request"


class ContextTooLong(InvalidRequest):
    """Prompt and requested answer exceed the model's context."""

    code = "context_too_long"


class RequestRejected(MooncakeError):
    """Admission said no; `retry_after_s` in the detail."""

    code = "rejected"


class ServiceUnavailable(MooncakeError):
    """No instance can serve the request now; `retry_after_s` in the detail."""

    code = "unavailable"


class RequestCancelled(MooncakeError):
    """Whoever asked is gone or changed its mind."""

    code = "cancelled"


class ModelError(MooncakeError):
    """A model folder that cannot be served."""

    code = "model"


class ModelNotFound(ModelError):
    """There is no model at that path."""

    code = "model_not_found"


class ModelTooLarge(ModelError):
    """Weights and KV do not fit; the message shows the arithmetic."""

    code = "model_too_large"


class EngineError(MooncakeError):
    """The engine failed while computing."""

    code = "engine"


class KVLost(MooncakeError):
    """KV that a computation relied on did not come, or was damaged."""

    code = "kv_lost"


def _tree(root: type[MooncakeError]) -> dict[str, type[MooncakeError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


_BY_CODE = _tree(MooncakeError)


def to_wire(error: BaseException) -> tuple[str, str, dict[str, Any]]:
    """(code, message, detail) of an error, to be sent to a peer. Foreign exceptions become code `error`."""
    if isinstance(error, MooncakeError):
        return error.code, error.message, error.detail
    return MooncakeError.code, f"{type(error).__name__}: {error}", {}


def from_wire(code: str, message: str, detail: dict[str, Any]) -> MooncakeError:
    """The error a peer sent; an unknown code (a newer peer) becomes the base class."""
    kind = _BY_CODE.get(code, MooncakeError)
    if kind is ConfigError:
        return ConfigError(message, problems=detail.get("problems"))
    return kind(message, **detail)
