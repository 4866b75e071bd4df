"""Transport `shm`: peers of one host map each other's memory; a transfer is one copy, without a socket."""

from mooncake_shm.transport import ShmTransport

__all__ = ["ShmTransport"]
