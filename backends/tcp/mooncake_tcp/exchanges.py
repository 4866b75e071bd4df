"""The exchanges with all peers, lent to threads that wait for their transfers."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from mooncake_core.errors import PathFailed, TransferError
from mooncake_core.transfer.contract import Completion
from mooncake_core.transfer.sieve import Sieve
from mooncake_tcp.exchange import Exchange, Pair
from mooncake_tcp.links import WATCH_S, Address, Link, Links, Peer

MOST_PER_PEER: Final = 8
MOST: Final = 512
"""To all peers: each is a descriptor here, and a thread at the peer."""


class Exchanges:
    """A few per peer, opened on demand. Used by many threads."""

    def __init__(self, links: Links, note_deadline: Callable[[float], None], busy_poll_s: float = 0.0) -> None:
        """`note_deadline` is told until when each thing under way must have ended; `expire` is to be called then."""
        self._links = links
        self._note_deadline = note_deadline
        self._busy_poll_s = busy_poll_s
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)
        self._idle: dict[Peer, list[Exchange]] = {}
        self._lent: dict[Exchange, Peer] = {}
        self._num_lent: dict[Peer, int] = {}
        self._sieve: Sieve[Exchange] = Sieve()
        """All of them."""
        self._closed = False

    def carry_out(self, peer: Peer, pairs: Sequence[Pair]) -> list[Completion | None] | None:
        """Carries operations out in the calling thread; None where all exchanges with the peer are lent out."""
        exchange = self._lend(peer, pairs)
        if exchange is None:
            return None
        started_s = time.monotonic()
        try:
            ended = exchange.carry_out(pairs)
            if exchange.link is not None and not exchange.is_broken:
                exchange.link.delivered(_num_bytes(pairs), time.monotonic() - started_s)
            return ended
        finally:
            self._take_back(exchange)

    def is_lent(self, peer: Peer) -> bool:
        """Whether any with this peer is in use."""
        with self._lock:
            return self._num_lent.get(peer, 0) > 0

    def expire(self, now: float) -> float:
        """Breaks off what is late; the first deadline of the rest, infinity where nothing is under way."""
        with self._lock:
            lent = list(self._lent)
        for exchange in lent:
            exchange.expire(now)
        first_s = min((exchange.deadline_s for exchange in lent if exchange.deadline_s > now), default=math.inf)
        return min(first_s, now + WATCH_S) if any(exchange.link for exchange in lent) else first_s

    def close(self, reason: TransferError) -> None:
        """Ends all, and waits for those who use one. Idempotent."""
        with self._lock:
            self._closed = True
            idle = [exchange for exchanges in self._idle.values() for exchange in exchanges]
            self._idle.clear()
            for exchange in [*idle, *self._lent]:
                exchange.end(reason)
            # What has begun nothing has been ended above, and will not; an interrupt may even have kept it from being returned.
            self._returned.wait_for(lambda: all(exchange.deadline_s == math.inf for exchange in self._lent))

    def _lend(self, peer: Peer, pairs: Sequence[Pair]) -> Exchange | None:
        with self._lock:
            if self._closed or self._num_lent.get(peer, 0) >= MOST_PER_PEER:
                return None
            exchange = self._pick(peer, pairs)
            self._sieve.touch(exchange)
            self._lent[exchange] = peer
            self._num_lent[peer] = self._num_lent.get(peer, 0) + 1
            return exchange

    def _pick(self, peer: Peer, pairs: Sequence[Pair]) -> Exchange:
        """To a peer with several links it goes over the one whose turn it is."""
        address = peer[0]
        if len(peer) > 1:
            address = self._links.next(peer, self._links.good(peer, time.monotonic()), _num_bytes(pairs))
        idle = self._idle.setdefault(peer, [])
        for exchange in [one for one in reversed(idle) if one.address == address]:
            idle.remove(exchange)
            if exchange.is_good():
                return exchange
            self._end(exchange, "its peer has ended it")
        return self._new(address, self._links.open(peer, address) if len(peer) > 1 else None)

    def _new(self, address: Address, link: Link | None = None) -> Exchange:
        self._forget_ended()
        if len(self._sieve) >= MOST:
            self._make_room()
        exchange = Exchange(
            *address,
            dialer=self._links.dialer,
            note_deadline=self._note_deadline,
            link=link,
            busy_poll_s=self._busy_poll_s,
        )
        self._sieve.add(exchange)
        return exchange

    def _make_room(self) -> None:
        """Ends one that is not lent out; where there is none, there are more for a while."""
        unused = self._sieve.evict(lambda one: one not in self._lent)
        for peer, idle in [*self._idle.items()]:
            if unused in idle:
                idle.remove(unused)
                self._end(unused, "it was not used for long")
                self._forget_unused(peer)

    def _end(self, exchange: Exchange, why: str) -> None:
        self._sieve.remove(exchange)
        exchange.end(PathFailed(why))

    def _forget_ended(self) -> None:
        """Of all peers: nobody would ever ask for one that is gone again. Done whenever there is a new exchange, so that there
        are never many."""
        for peer, idle in [*self._idle.items()]:
            for exchange in [one for one in idle if not one.is_good()]:
                idle.remove(exchange)
                self._end(exchange, "its peer has ended it")
            self._forget_unused(peer)

    def _take_back(self, exchange: Exchange) -> None:
        with self._lock:
            peer = self._lent.pop(exchange)
            self._num_lent[peer] -= 1
            if not (exchange.is_broken or self._closed):
                self._idle.setdefault(peer, []).append(exchange)
                return
            if exchange.link is not None and not self._closed:
                self._links.fail(exchange.link.address, time.monotonic())
            self._end(exchange, "it is not used any more")
            self._forget_unused(peer)
            self._returned.notify_all()

    def _forget_unused(self, peer: Peer) -> None:
        if not self._num_lent.get(peer) and not self._idle.get(peer):
            self._num_lent.pop(peer, None)
            self._idle.pop(peer, None)
            self._links.forget(peer)


def _num_bytes(pairs: Sequence[Pair]) -> int:
    return sum([operation.length for operation, _ in pairs])
