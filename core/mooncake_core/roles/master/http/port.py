"""Opens the admin port and closes it."""

from __future__ import annotations

import socket

from mooncake_core.address import HostPort
from mooncake_core.config.schema import ClusterConfig
from mooncake_core.roles.http_server import HttpServer, listen, local_url
from mooncake_core.roles.master.http.access import Access
from mooncake_core.roles.master.http.app import AdminApp
from mooncake_core.roles.master.http.state import MasterState


def open_listener(config: ClusterConfig, port: int) -> socket.socket:
    """What an AdminPort is to answer at. Raises WireError where the port cannot be had."""
    return listen(HostPort(Access(config).host, port), what="the admin port", setting="master.admin_port")


class AdminPort:
    """Serves while it is open."""

    def __init__(self, config: ClusterConfig, listener: socket.socket, state: MasterState) -> None:
        access = Access(config)
        self.url = local_url(access.host, listener)
        self._server = HttpServer(AdminApp(state, access).app(), listener)

    async def close(self) -> None:
        """Ends it."""
        await self._server.close()
