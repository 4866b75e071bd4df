"""Who may use the admin port."""

from __future__ import annotations

import hashlib
import hmac

from starlette.requests import Request

from mooncake_core.address import is_loopback
from mooncake_core.config.schema import ClusterConfig
from mooncake_core.gateway.http_errors import HTTPError

READING = ("GET", "HEAD")


class Access:
    """With an admin key, whoever has it. Without one all who may use the cluster: everybody where it has no key either;
    else whoever is on this host, and only to look."""

    def __init__(self, config: ClusterConfig) -> None:
        self._key = _digest(config.master.admin_key) if config.master.admin_key else b""
        self._reads_only = config.auth is not None and not self._key
        self._host = config.master.host

    @property
    def host(self) -> str:
        """Where to listen."""
        if self._reads_only and not is_loopback(self._host):
            return "::1" if ":" in self._host else "127.0.0.1"
        return self._host

    def check(self, request: Request) -> None:
        """Whether a request may be answered.

        Raises:
            HTTPError: 401, no key or a wrong one; 403, it would change something, or comes from a web page.
        """
        if self._key:
            self._check_key(request.headers.get("authorization", ""))
        if request.method in READING:
            return
        if self._reads_only:
            raise HTTPError(
                403, "no_admin_key", "nothing is changed through this port without a key: set master.admin_key"
            )
        if "origin" in request.headers:
            raise HTTPError(403, "from_web_page", "a web page may not change anything here")

    def _check_key(self, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(key.strip()), self._key):
            raise HTTPError(
                401, "invalid_admin_key", "expected master.admin_key in the header Authorization: Bearer KEY"
            )


def _digest(key: str) -> bytes:
    """Of equal length for all keys, so that comparing takes equal time."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
