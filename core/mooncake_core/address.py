"""Addresses: `tcp://host:port`, IPv6 in brackets. Pure text, no look-ups."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple
from urllib.parse import urlsplit


class HostPort(NamedTuple):
    """A host and a port; port 0 means "any free one", and the real one is published."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """As pyzmq and the wire messages write it."""
        return f"tcp://{self}"


def parse_host_port(text: str) -> HostPort:
    """Reads `host:port`, `[v6]:port`, with or without `tcp://` in front.

    Raises:
        ValueError: the text is no address; the message says what was expected.
    """
    bare = text.removeprefix("tcp://")
    host, colon, port = bare.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"expected host:port with a port up to 65535, got {text!r}")
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise ValueError(f"expected an IPv6 address in brackets, like [::1]:{port}, got {text!r}")
    return HostPort(host.strip("[]"), int(port))


def http_base(text: str) -> str:
    """A server's URL without the /v1 that OpenAI's clients want.

    Raises:
        ValueError: the text is no such URL; the message says what was expected.
    """
    expected = f"expected a URL like http://127.0.0.1:8000, got {text!r}"
    try:
        parsed = urlsplit(text)
        parsed.port  # noqa: B018  what is no port must show here
    except ValueError as error:
        raise ValueError(f"{expected}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.hostname:
        raise ValueError(expected)
    return text.rstrip("/").removesuffix("/v1")


def is_wildcard(host: str) -> bool:
    """Whether the host means every address of the machine: one can listen there, and nobody can be sent there."""
    try:
        return host == "*" or ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host. Names other than localhost count as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
