"""Transport `tcp`: one-sided reads and writes over sockets, served by threads beside the interpreter lock."""

from mooncake_tcp.transport import TcpTransport

__all__ = ["TcpTransport"]
