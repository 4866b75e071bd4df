"""The Transfer Engine: memory to memory between processes, by whatever path is best. What programs use of it is here."""

from mooncake_core.transfer.addresses import Span
from mooncake_core.transfer.batch import Batch, State, Transfer
from mooncake_core.transfer.contract import Kind, TlsFiles
from mooncake_core.transfer.endpoint import Endpoint, Notification, Request
from mooncake_core.transfer.lanes import Carried
from mooncake_core.transfer.memory import Memory
from mooncake_core.transfer.peer import Peer, Remote
from mooncake_core.transfer.shared_memory import SharedMemory

__all__ = [
    "Batch",
    "Carried",
    "Endpoint",
    "Kind",
    "Memory",
    "Notification",
    "Peer",
    "Remote",
    "Request",
    "SharedMemory",
    "Span",
    "State",
    "TlsFiles",
    "Transfer",
]
