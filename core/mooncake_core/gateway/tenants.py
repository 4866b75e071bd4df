"""Who asks: API keys name tenants. Tenants share no cache, and each may have a limit of its own."""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mooncake_core.config.build import Builder
from mooncake_core.config.private import read_private
from mooncake_core.config.schema import ApiKeys, GatewayConfig, Name, TenantConfig
from mooncake_core.config.source import Source
from mooncake_core.errors import ConfigError, RequestRejected
from mooncake_core.gateway.http_errors import HTTPError


@dataclass(slots=True)
class Tenant:
    """One tenant, and how many of its requests are under way."""

    name: str
    max_concurrent: int | None = None
    in_progress: int = 0

    def enter(self) -> None:
        """Counts a request.

        Raises:
            RequestRejected: the tenant's limit is reached.
        """
        if self.max_concurrent is not None and self.in_progress >= self.max_concurrent:
            raise RequestRejected(
                f"tenant {self.name} has {self.in_progress} requests in progress, which is its limit", retry_after_s=1
            )
        self.in_progress += 1

    def leave(self) -> None:
        """A counted request is over."""
        self.in_progress -= 1


class Tenants:
    """API keys and whose they are. Without any key, everybody is the tenant without a name."""

    def __init__(self, settings: GatewayConfig) -> None:
        """Reads the keys.

        Raises:
            ConfigError: the file of keys cannot be used, a key is empty or given twice, or a limit is nobody's.
        """
        keys = _file_keys(Path(settings.api_keys_file)) if settings.api_keys_file else {}
        for name, given in settings.api_keys.items():
            keys[name] = [*keys.get(name, []), *_listed(given)]
        _check(keys, settings.tenants)
        self._anybody = Tenant("")
        self._tenants: list[tuple[bytes, Tenant]] = []
        for name, texts in keys.items():
            tenant = Tenant(name, settings.tenants.get(name, TenantConfig()).max_concurrent)
            self._tenants += [(_digest(key), tenant) for key in texts]

    def of(self, authorization: str) -> Tenant:
        """Whose key an Authorization header has.

        Raises:
            HTTPError: 401, no key or a wrong one.
        """
        if not self._tenants:
            return self._anybody
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise HTTPError(401, "invalid_api_key", "expected an API key in the header Authorization: Bearer KEY")
        given = _digest(key.strip())
        found = None
        for known, tenant in self._tenants:  # all of them: the time must not tell which one is close
            if hmac.compare_digest(known, given):
                found = tenant
        if found is None:
            raise HTTPError(401, "invalid_api_key", "the API key is not known here")
        return found


def _digest(key: str) -> bytes:
    """Of equal length for all keys, so that comparing takes equal time."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _listed(keys: ApiKeys) -> list[str]:
    return [keys] if isinstance(keys, str) else list(keys)


def _file_keys(path: Path) -> dict[str, list[str]]:
    hint = "it is named by gateway.api_keys_file"
    text = read_private(path, "the API keys", hint).decode("utf-8", "replace")
    source, builder = Source(os.environ), Builder()
    kind: Any = dict[Name, ApiKeys]
    built = builder.build(source.read(text, str(path)), kind)
    problems = [str(problem) for problem in (*source.problems, *builder.problems)]
    if not problems and not built:  # otherwise nobody would need a key
        problems = [f"{path}: expected tenants and their keys, got none"]
    if problems:
        raise ConfigError("\n".join(problems), problems=problems)
    return {tenant: _listed(keys) for tenant, keys in built.items()}


def _check(keys: dict[str, list[str]], limits: dict[str, TenantConfig]) -> None:
    owners: dict[str, str] = {}
    for tenant, given in keys.items():
        if not given or not all(given):
            raise ConfigError(f"API keys: expected a key for tenant {tenant}, got an empty one")
        for key in given:
            if owners.setdefault(key, tenant) != tenant:
                raise ConfigError(f"API keys: tenants {owners[key]} and {tenant} have the same key")
    if unknown := limits.keys() - keys.keys():
        raise ConfigError(f"gateway.tenants: expected tenants that have an API key, got {', '.join(sorted(unknown))}")
