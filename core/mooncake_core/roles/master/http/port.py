"""Opens the admin port and closes it."""

from __future__ import annotations

from mooncake_core.address import HostPort
from mooncake_core.config.schema import ClusterConfig
from mooncake_core.roles.http_server import HttpServer, listen, local_url
from mooncake_core.roles.master.http.access import Access
from mooncake_core.roles.master.http.app import AdminApp
from mooncake_core.roles.master.http.state import MasterState


class AdminPort:
    """Serves while it is open."""

    def __init__(self, config: ClusterConfig, port: int, state: MasterState) -> None:
        """Raises WireError where the port cannot be had."""
        access = Access(config)
        listener = listen(HostPort(access.host, port), what="the admin port", setting="master.admin_port")
        self.url = local_url(access.host, listener)
        self._server = HttpServer(AdminApp(state, access).app(), listener)

    async def close(self) -> None:
        """Ends it."""
        await self._server.close()
