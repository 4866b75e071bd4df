"""The peers of an initiator, and the thread that gets to know them: connects, asks for memory, notices that they end.

It waits for many at once, so a peer that is stopped delays nobody else, and each operation only until its deadline.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mooncake_core.errors import DeadlineExceeded, PathFailed, TransferError
from mooncake_core.transfer.contract import Operation
from mooncake_shm.ahead import Ahead
from mooncake_shm.introduction import Gone, Have, Want
from mooncake_shm.peer import Peer, stale

TIMEOUT_S: Final = 5.0
"""A peer that has not answered for so long is a failed path: another one may have time left."""
CONNECT_PAUSE_S: Final = 0.01
KNOWN_DEAD: Final = 1024

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Waiting:
    """An operation whose memory is not mapped yet."""

    operation: Operation
    peer: str
    want: Want
    patience_until_s: float

    @property
    def ends_s(self) -> float:
        """When it has waited long enough."""
        return min(self.operation.deadline_s, self.patience_until_s)


@dataclass(slots=True)
class _Acquaintance:
    """A peer, who waits for its memory, and what it was asked for and has not answered yet."""

    peer: Peer
    waiting: list[Waiting] = field(default_factory=list)
    asked: Want | None = None


class Peers:
    """`ready` gets each operation once its memory is mapped, `failed` those that it cannot be mapped for."""

    def __init__(
        self, ready: Callable[[Operation], None], failed: Callable[[Operation, TransferError | TimeoutError], None]
    ) -> None:
        self._ready = ready
        self._failed = failed
        self._lock = threading.Lock()
        self._arrived: list[Waiting] = []
        self._known: dict[str, _Acquaintance] = {}
        """Changed by the thread alone."""
        self._dead: OrderedDict[str, None] = OrderedDict()
        self._closing = False
        self._ahead = Ahead()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._work, name="shm-peers", daemon=True)
        self._thread.start()

    def get(self, name: str) -> Peer | None:
        """A peer that is known and has not ended."""
        known = self._known.get(name)
        return known.peer if known else None

    def introduce(self, operation: Operation, peer: str, want: Want) -> None:
        """Gets memory mapped for an operation; returns at once."""
        waiting = Waiting(operation, peer, want, time.monotonic() + TIMEOUT_S)
        with self._lock:
            self._arrived.append(waiting)
            if not self._closing:
                os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Forgets all peers; who waits for them goes to `failed`."""
        with self._lock:
            self._closing = True
            os.eventfd_write(self._wake_fd, 1)
        self._thread.join()
        self._ahead.close()
        os.close(self._wake_fd)

    def _work(self) -> None:
        while not self._closing:
            for peer_name in self._next():
                if (known := self._known.get(peer_name)) is not None:
                    self._talk(known)
            self._expire(time.monotonic())
        for known in list(self._known.values()):
            self._drop(known, PathFailed("the transport was closed"))
        for waiting in self._arrived:
            self._failed(waiting.operation, PathFailed("the transport was closed"))

    def _next(self) -> set[str]:
        """Waits until something is to be done; with which peers."""
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        names = {known.peer.fileno(): name for name, known in self._known.items() if known.peer.fileno() >= 0}
        unconnected = self._known.keys() - names.values()
        for fileno in names:
            poller.register(fileno, select.POLLIN | select.POLLRDHUP)
        ready = {fileno for fileno, _ in poller.poll(self._patience_ms(bool(unconnected)))}
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
        return {names[fileno] for fileno in ready if fileno in names} | unconnected | self._take_arrived()

    def _patience_ms(self, connecting: bool) -> float | None:
        ends = [waiting.ends_s for known in self._known.values() for waiting in known.waiting]
        if connecting:
            ends.append(time.monotonic() + CONNECT_PAUSE_S)
        return max(0.0, min(ends) - time.monotonic()) * 1000 if ends else None

    def _take_arrived(self) -> set[str]:
        with self._lock:
            arrived, self._arrived = self._arrived, []
        for waiting in arrived:
            if waiting.peer in self._dead:  # names are never used again
                reason = f"the process behind {waiting.peer} has ended"
                self._failed(waiting.operation, PathFailed(reason, path="shm", errno=errno.ECONNREFUSED))
                continue
            known = self._known.setdefault(waiting.peer, _Acquaintance(Peer(waiting.peer)))
            known.waiting.append(waiting)
        return {waiting.peer for waiting in arrived}

    def _talk(self, known: _Acquaintance) -> None:
        try:
            if not known.peer.connect():
                return
            while (news := known.peer.news()) is not None:
                self._hear(known, *news)
            self._ask(known)
        except PathFailed as error:
            if error.detail["errno"] == errno.ECONNREFUSED:  # ends may also be errors of a peer that lives
                self._bury(known.peer.name)
            self._drop(known, error)
        except Exception as error:  # whatever it is, nobody may be left waiting, and other peers are innocent
            _log.exception("the introduction to %s failed", known.peer.name)
            self._drop(known, known.peer.failed(error))

    def _hear(self, known: _Acquaintance, news: Have | Gone, descriptors: list[int]) -> None:
        try:
            if isinstance(news, Gone):
                known.peer.unmap(news.region)
            elif known.asked is not None:
                want, known.asked = known.asked, None
                self._answered(known, want, news, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _answered(self, known: _Acquaintance, want: Want, have: Have, descriptors: list[int]) -> None:
        if not have.found and not have.errno:
            self._fail(known, lambda waiting: waiting.want == want, stale())
            return
        try:
            memory = known.peer.map(want, have, descriptors)
        except PathFailed as error:
            self._fail(known, lambda waiting: waiting.want == want, error)
            return

        def is_used(peer: Peer = known.peer) -> bool:
            return peer.is_mapped(want.region, write=want.write)

        self._ahead.begin(memory, descriptors[1], write=want.write, is_used=is_used)

    def _ask(self, known: _Acquaintance) -> None:
        """Lets go whose memory is mapped, and asks for that of the next."""
        waiting, known.waiting = known.waiting, []
        for one in waiting:
            if known.peer.is_mapped(one.want.region, write=one.want.write):
                self._ready(one.operation)
            else:
                known.waiting.append(one)
        if known.waiting and known.asked is None:
            known.asked = known.waiting[0].want
            known.peer.ask(known.asked)

    def _expire(self, now: float) -> None:
        late = DeadlineExceeded("the peer did not hand out its memory in time")
        for known in self._known.values():
            self._fail(known, lambda waiting: waiting.operation.deadline_s <= now, late)
            silent = PathFailed(f"{known.peer.name} over shm does not answer", path="shm", errno=errno.ETIMEDOUT)
            self._fail(known, lambda waiting: waiting.patience_until_s <= now, silent)
        for known in [known for known in self._known.values() if known.peer.fileno() < 0 and not known.waiting]:
            self._drop(known, PathFailed("nobody waits for it"))

    def _fail(
        self, known: _Acquaintance, which: Callable[[Waiting], bool], error: TransferError | TimeoutError
    ) -> None:
        failing = [waiting for waiting in known.waiting if which(waiting)]
        known.waiting = [waiting for waiting in known.waiting if not which(waiting)]
        for waiting in failing:
            self._failed(waiting.operation, error)

    def _drop(self, known: _Acquaintance, error: PathFailed) -> None:
        del self._known[known.peer.name]
        known.peer.end()
        self._fail(known, lambda _: True, error)

    def _bury(self, name: str) -> None:
        self._dead[name] = None
        while len(self._dead) > KNOWN_DEAD:
            self._dead.popitem(last=False)
