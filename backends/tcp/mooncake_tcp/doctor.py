"""`mooncake doctor`: whether the files of transfer.tls will do, by a handshake with themselves."""

from __future__ import annotations

import os
import ssl
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mooncake_core.config.schema import TlsConfig
from mooncake_core.config.tls import absolute
from mooncake_core.doctor import Finding, Subject, fail, ok, skip, warn
from mooncake_core.transfer.contract import TlsFiles
from mooncake_tcp.tls import contexts

DAY_S: Final = 86400
SOON_S: Final = 14 * DAY_S
SIGN: Final = "have the cluster's authority sign a new one"
EXPIRED: Final = 10
"""OpenSSL's number, X509_V_ERR_CERT_HAS_EXPIRED."""
NOT_YET_VALID: Final = 9


def check(subject: Subject) -> Iterator[Finding]:
    if subject.config is None:
        yield skip("give -c FILE to look at the files of its transfer.tls")
        return
    if subject.config.transfer.tls is None:
        yield skip("transfer.tls is not set: data connections over tcp are not encrypted")
        return
    tls = absolute(subject.config.transfer.tls)
    problems = list(_unreadable(tls)) or list(_malformed(tls)) or list(_mismatched(tls))
    yield from problems or [_handshake(tls)]
    yield from _open_key(Path(tls.key))


def _unreadable(tls: TlsConfig) -> Iterator[Finding]:
    for setting, file in (("certificate", tls.certificate), ("key", tls.key), ("ca", tls.ca)):
        place = f"transfer.tls.{setting}"
        if not Path(file).is_file():
            yield fail(
                f"{place}: expected a file in PEM format, there is none at {file}", f"put it there, or set {place}"
            )
        elif not os.access(file, os.R_OK):
            yield fail(
                f"{place}: {file} cannot be read by this user",
                "run as its owner, or give it to the user that runs the cluster",
            )


def _malformed(tls: TlsConfig) -> Iterator[Finding]:
    for setting, file in (("certificate", tls.certificate), ("ca", tls.ca)):
        try:
            _certificates(file)
        except (ssl.SSLError, OSError):
            yield fail(
                f"transfer.tls.{setting}: {file} is no certificate in PEM format",
                "it begins with -----BEGIN CERTIFICATE-----; `openssl x509 -inform DER` converts others",
            )


def _mismatched(tls: TlsConfig) -> Iterator[Finding]:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(tls.certificate, tls.key, password="")
    except (ssl.SSLError, OSError) as error:
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            yield fail(
                f"transfer.tls.key: {tls.key} is not the key of {tls.certificate}",
                "name the key that the certificate was asked for with",
            )
        else:
            yield fail(
                f"transfer.tls.key: {tls.key} is no private key in PEM format without a passphrase",
                "`openssl pkey` writes one so",
            )
    authorities = _certificates(tls.ca)
    if not authorities:
        yield fail(
            f"transfer.tls.ca: {tls.ca} is no authority's certificate (CA:TRUE is not in it)",
            "name the certificate by which those of hosts were signed",
        )
    elif all(_left_s(authority) < 0 for authority in authorities):
        yield fail(f"transfer.tls.ca: the authority in {tls.ca} has expired", "make a new one, and certificates by it")


def _handshake(tls: TlsConfig) -> Finding:
    try:
        shown = _shown(tls)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (EXPIRED, NOT_YET_VALID):
            return fail(
                f"transfer.tls.certificate: {tls.certificate}: {error.verify_message}", f"{SIGN}, or set the clock"
            )
        return fail(
            f"transfer.tls.certificate: {tls.certificate} is not vouched for by {tls.ca}: {error.verify_message}",
            f"name the authority that signed it, or {SIGN}",
        )
    except ssl.SSLError as error:
        return fail(f"transfer.tls: a handshake with itself failed: {error.reason or error}", SIGN)
    left_s = _left_s(shown)
    until = f"{tls.certificate} is good until {shown['notAfter']}"
    if left_s < SOON_S:
        return warn(f"transfer.tls.certificate: {until}", f"{SIGN}, and start the processes again")
    return ok(f"transfer.tls: {until}, and fits its key and {tls.ca}")


def _open_key(key: Path) -> Iterator[Finding]:
    if key.is_file() and stat.S_IMODE(key.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        yield warn(f"transfer.tls.key: others than its owner may use {key}", f"chmod 600 {key}")


def _shown(tls: TlsConfig) -> dict[str, Any]:
    """The certificate, as a peer that has the same authority sees it. Both ends have it, and verify it.

    Raises:
        ssl.SSLError: they refuse each other.
    """
    client_context, server_context = contexts(TlsFiles(tls.certificate, tls.key, tls.ca))
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    shaking = [client, server]
    while shaking:  # whoever waits is given what it waits for by the other one, so each round goes on
        for end in list(shaking):
            try:
                end.do_handshake()
                shaking.remove(end)
            except ssl.SSLWantReadError:
                continue
    return client.getpeercert() or {}


def _certificates(file: str) -> list[dict[str, Any]]:
    """The authorities' among the certificates of a file.

    Raises:
        OSError: it has none at all.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(file)
    return context.get_ca_certs()


def _left_s(certificate: dict[str, Any]) -> float:
    return ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()
