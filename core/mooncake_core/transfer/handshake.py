"""Both ends prove that they know the cluster's secret, before anything else is said.

target → initiator: MAGIC, version, whether a secret is expected, nonce
initiator → target: MAGIC, version, whether it has one, nonce, proof
target → initiator: verdict, proof, the target's clock
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import secrets
import socket
import struct
import time
from typing import Final

from mooncake_core.errors import AuthenticationFailed, VersionMismatch
from mooncake_core.transfer.sockets import receive_into

MAGIC: Final = b"MNCK"
VERSION: Final = 4
NONCE_BYTES: Final = 16
PROOF_BYTES: Final = 32
TIMEOUT_S: Final = 5.0
_GREETING: Final = struct.Struct(f"<4sBB{NONCE_BYTES}s")
_ANSWER: Final = struct.Struct(f"<4sBB{NONCE_BYTES}s{PROOF_BYTES}s")
_VERDICT: Final = struct.Struct(f"<B{PROOF_BYTES}sd")


class Verdict(enum.IntEnum):
    """The target's word on the initiator."""

    WELCOME = 0
    WRONG_SECRET = 1
    WRONG_VERSION = 2


def welcome(sock: socket.socket, secret: bytes | None) -> bool:
    """The target's side; whether the initiator may go on."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    sock.sendall(_GREETING.pack(MAGIC, VERSION, secret is not None, nonce))
    magic, version, has_secret, their_nonce, proof = _ANSWER.unpack(_receive(sock, _ANSWER.size))
    if magic != MAGIC:
        return False
    expected = _proof(secret, b"initiator", nonce, their_nonce)
    verdict = Verdict.WELCOME
    if version != VERSION:
        verdict = Verdict.WRONG_VERSION
    elif bool(has_secret) != (secret is not None) or not hmac.compare_digest(proof, expected):
        verdict = Verdict.WRONG_SECRET
    own_proof = _proof(secret, b"target", their_nonce, nonce) if verdict is Verdict.WELCOME else bytes(PROOF_BYTES)
    sock.sendall(_VERDICT.pack(verdict, own_proof, time.monotonic()))
    return verdict is Verdict.WELCOME


def introduce(sock: socket.socket, secret: bytes | None, peer: str) -> float:
    """The initiator's side; what the target's clock showed.

    Raises:
        AuthenticationFailed: the ends do not share a secret.
        VersionMismatch: the target speaks another version, or something else altogether.
    """
    magic, version, _, their_nonce = _GREETING.unpack(_receive(sock, _GREETING.size))
    if magic != MAGIC or version != VERSION:
        raise VersionMismatch(f"{peer} does not speak version {VERSION} of the data protocol")
    nonce = secrets.token_bytes(NONCE_BYTES)
    proof = _proof(secret, b"initiator", their_nonce, nonce)
    sock.sendall(_ANSWER.pack(MAGIC, VERSION, secret is not None, nonce, proof))
    verdict, their_proof, clock_s = _VERDICT.unpack(_receive(sock, _VERDICT.size))
    if verdict == Verdict.WRONG_VERSION:
        raise VersionMismatch(f"{peer} does not speak version {VERSION} of the data protocol")
    if verdict != Verdict.WELCOME or not hmac.compare_digest(
        their_proof, _proof(secret, b"target", nonce, their_nonce)
    ):
        raise AuthenticationFailed(f"{peer} has another cluster key: check auth.key_file at both ends")
    return float(clock_s)


def _proof(secret: bytes | None, role: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.digest(secret or b"", role + first + second, hashlib.sha256)


def _receive(sock: socket.socket, num_bytes: int) -> bytes:
    data = bytearray(num_bytes)
    receive_into(sock, memoryview(data))
    return bytes(data)
