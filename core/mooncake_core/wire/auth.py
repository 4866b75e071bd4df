"""The cluster key: CURVE key pairs for the control plane, a shared secret for the data plane.

Whoever has the file belongs to the cluster. Servers admit only the client key that is in it.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec
from msgspec import Struct

from mooncake_core import whole_file
from mooncake_core.config.private import read_private
from mooncake_core.errors import ConfigError, UsageError


class ClusterKey(Struct, frozen=True, kw_only=True):
    """Keys in Z85 text, as pyzmq takes them; `data_secret` is hexadecimal."""

    server_public: str
    server_secret: str
    client_public: str
    client_secret: str
    data_secret: str

    @property
    def secret(self) -> bytes:
        """32 bytes that both ends of a data connection must prove to know."""
        return bytes.fromhex(self.data_secret)

    @classmethod
    def generate(cls) -> ClusterKey:
        """A new key."""
        import zmq

        server_public, server_secret = zmq.curve_keypair()
        client_public, client_secret = zmq.curve_keypair()
        return cls(
            server_public=server_public.decode(),
            server_secret=server_secret.decode(),
            client_public=client_public.decode(),
            client_secret=client_secret.decode(),
            data_secret=secrets.token_hex(32),
        )

    def write(self, path: Path) -> None:
        """Writes the key so that only its owner can read it, also where its folder is made.

        Raises:
            UsageError: the file exists; it may be the key of a running cluster.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"
        try:
            whole_file.write(path, data, mode=0o600, anew=True)
        except FileExistsError as error:
            raise UsageError(f"{path} exists already: it may be in use; remove it, or choose another file") from error

    @classmethod
    def load(cls, path: Path) -> ClusterKey:
        """Reads a key.

        Raises:
            ConfigError: it is missing, malformed, or readable by others; says what to do.
        """
        data = read_private(path, "the cluster key", "`mooncake auth init` writes one")
        try:
            key = msgspec.json.decode(data, type=cls)
            key.secret  # noqa: B018  a malformed secret must show here
        except (msgspec.MsgspecError, ValueError) as error:
            raise ConfigError(f"{path} is no cluster key: {error}; copy it from another host of the cluster") from error
        return key
