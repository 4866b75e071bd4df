"""Fetching one object: a few threads, each of which asks the directory for a shard, fetches and checks it, and says so."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Final

import xxhash

from mooncake_core.errors import (
    ChecksumMismatch,
    DeadlineExceeded,
    MooncakeError,
    NotRegistered,
    OutOfRange,
    StaleSegment,
    TransferError,
)
from mooncake_core.p2p.parts import pieces_of, places, shard_span
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.endpoint import Endpoint
from mooncake_core.transfer.peer import Peer
from mooncake_core.wire.messages.p2p import FailedShard, Holder, NextShard, PullBegun, ShardTask

SHARD_S: Final = 60.0
"""A source that has not given a shard by then is left alone."""
ASK_S: Final = 10.0

_log = logging.getLogger(__name__)


class Pull:
    """One object on its way into `views`."""

    def __init__(
        self, endpoint: Endpoint, directory: str, name: str, views: Sequence[memoryview], begun: PullBegun, until: float
    ) -> None:
        self._endpoint = endpoint
        self._directory = directory
        self._name = name
        self._views = views
        self._begun = begun
        self._until = until
        self._lock = threading.Lock()
        self._peers: dict[str, Peer] = {}
        self._error: BaseException | None = None
        self._trouble = ""
        """The last source that failed."""
        self._stopped = threading.Event()

    def run(self, num_threads: int) -> None:
        """Returns when all of the object has come.

        Raises:
            DeadlineExceeded: the time is over.
            TransferError: nobody has a part of it any more; names the last failure.
            WireError: the directory cannot be asked.
        """
        threads = [threading.Thread(target=self._work, name="p2p-pull", daemon=True) for _ in range(num_threads)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C: nobody writes to the memory any more when this returns
            self._stopped.set()
            for thread in threads:
                if thread.ident is not None:
                    _join_surely(thread)
            raise
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            self._fetch_all()
        except BaseException as error:  # raised again by run
            with self._lock:
                self._error = self._error or error
            self._stopped.set()

    def _fetch_all(self) -> None:
        done: list[int] = []
        failed: list[FailedShard] = []
        while not self._stopped.is_set():
            if time.monotonic() > self._until:
                raise DeadlineExceeded(f"{self._name} was not fetched in time{self._trouble}")
            task = self._ask(done, failed)
            done, failed = [], []
            if task.is_whole:
                return
            if task.is_lost:
                raise TransferError(f"nobody has all of {self._name} any more{self._trouble}")
            if task.source is None:
                self._stopped.wait(task.wait_s)
                continue
            failure = self._fetch(task.shard, task.source)
            if failure is None:
                done.append(task.shard)
            else:
                failed.append(failure)

    def _ask(self, done: list[int], failed: list[FailedShard]) -> ShardTask:
        question = NextShard(name=self._name, endpoint=self._endpoint.name, done=done, failed=failed)
        return self._endpoint.ask(self._directory, question, ShardTask, timeout_s=ASK_S)

    def _fetch(self, shard: int, source: Holder) -> FailedShard | None:
        try:
            self._read(shard, source)
        except MooncakeError as error:
            with self._lock:
                self._trouble = f"; {source.endpoint}: {error}"
                self._peers.pop(source.endpoint, None)
            _log.warning("shard %d of %s did not come from %s: %s", shard, self._name, source.endpoint, error)
            is_gone = isinstance(error, StaleSegment | NotRegistered | OutOfRange | ChecksumMismatch)
            return FailedShard(shard=shard, source=source.endpoint, is_gone=is_gone)
        return None

    def _read(self, shard: int, source: Holder) -> None:
        begun = self._begun
        part = shard_span(shard, begun.shard_bytes, begun.size_bytes)
        peer = self._peer(source)
        pieces = pieces_of(self._views, part)
        pairs = list(places(pieces, source.spans, part.address))
        left_s = max(0.0, min(SHARD_S, self._until - time.monotonic()))
        self._endpoint.move(
            Kind.READ, peer, [piece for piece, _ in pairs], [address for _, address in pairs], timeout_s=left_s
        )
        if checksum_of(pieces) != begun.checksums[shard]:
            raise ChecksumMismatch("these are not the bytes that were registered: was the memory written to since?")

    def _peer(self, source: Holder) -> Peer:
        with self._lock:
            peer = self._peers.get(source.endpoint)
        if peer is None:
            peer = self._endpoint.open(source.endpoint, timeout_s=ASK_S)
            if peer.incarnation != source.incarnation:
                raise StaleSegment(f"{source.endpoint} was started anew")
            with self._lock:
                self._peers[source.endpoint] = peer
        return peer


def checksum_of(pieces: Sequence[memoryview]) -> int:
    """xxh3-64 of the bytes of all pieces."""
    summed = xxhash.xxh3_64()
    for piece in pieces:
        summed.update(piece)
    return summed.intdigest()


def _join_surely(thread: threading.Thread) -> None:
    while thread.is_alive():
        try:
            thread.join()
        except KeyboardInterrupt:
            continue
