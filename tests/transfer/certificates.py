"""An authority, and certificates of hosts by it, in a folder."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mooncake_core.transfer.contract import TlsFiles

DAY = datetime.timedelta(days=1)


class Authority:
    """Each has a key of its own, whatever its name."""

    def __init__(self, folder: Path, name: str = "authority", *, days: int = 1) -> None:
        self._folder = folder
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._sign(name, self._key.public_key(), is_authority=True, days=days)
        self.ca = self._write(f"{name}-ca.pem", self._certificate.public_bytes(serialization.Encoding.PEM))

    def member(self, name: str, *, days: int = 1) -> TlsFiles:
        """A host of the cluster, whose certificate is good for so many days from now on."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, key.public_key(), days=days)
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        return TlsFiles(
            certificate=self._write(f"{self._name}-{name}.pem", certificate.public_bytes(encoding)),
            key=self._write(
                f"{self._name}-{name}.key", key.private_bytes(encoding, form, serialization.NoEncryption())
            ),
            ca=self.ca,
        )

    def _sign(
        self, name: str, key: ec.EllipticCurvePublicKey, *, is_authority: bool = False, days: int = 1
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self._name)]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 3 * DAY)
            .not_valid_after(now + days * DAY)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def _write(self, name: str, content: bytes) -> str:
        path = self._folder / name
        path.write_bytes(content)
        return str(path)
