"""An HTTP server on a role's event loop."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

import uvicorn

from mooncake_core.address import HostPort, is_wildcard
from mooncake_core.errors import WireError

BACKLOG: Final = 1024


class HttpServer:
    """Serves an ASGI application. Signals are the role's business."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,  # nobody asks who the client is
            lifespan="off",
            date_header=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server._serve([listener]))

    def abort_connections(self) -> None:
        """Hangs up on clients that do not read."""
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()

    async def close(self) -> None:
        """Ends the server, and what it still answers within a second."""
        self._server.ending.set()
        await self._serving


class _Server(uvicorn.Server):
    """Waits for its end instead of looking for it ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ending = asyncio.Event()

    async def main_loop(self) -> None:
        await self.ending.wait()


def listen(address: HostPort, *, what: str, setting: str) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        WireError: the address cannot be bound; says what wanted it, why, and which setting to change.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets that name their protocol; without it the first token waits for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
    except OSError as error:
        listener.close()
        raise WireError(
            f"{what} cannot listen on {address}: {error.strerror}; stop what uses the port, or choose another "
            f"({setting}, 0 takes a free one)"
        ) from error
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def local_url(host: str, listener: socket.socket) -> str:
    """Where this host's own commands reach a server that listens at a host; a wildcard is no address to connect to."""
    if is_wildcard(host):
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://{HostPort(host, listener.getsockname()[1])}"
