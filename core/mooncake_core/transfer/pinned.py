"""Memory of the host through which bytes of devices go: pinned, so that devices copy to and from it at full speed."""

from __future__ import annotations

import contextlib
import logging
import mmap
import threading
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from mooncake_core.errors import TransferError
from mooncake_core.transfer.addresses import address_of
from mooncake_core.transfer.device import Device

MOST_PINNED: Final = 8
"""Buffers at once."""
PINNED_BYTES: Final = 4 << 20
"""Of each; a slice of a transfer fits."""
UNPINNED_BYTES: Final = 1 << 20
"""Of a buffer for who comes when all are lent out: slower, but nobody waits for the peer of somebody else."""


_log = logging.getLogger(__name__)


class _Pinned(NamedTuple):
    view: memoryview
    device: Device
    """That pinned it."""


class PinnedBuffers:
    """Of one engine, made when they are first needed. Any thread."""

    def __init__(self, register: Callable[[memoryview], object] | None = None) -> None:
        """`register` is told of each buffer when it is pinned."""
        self._register = register
        self._changed = threading.Condition()
        self._idle: list[_Pinned] = []
        self._num_pinned = 0
        self._num_being_made = 0
        self._makes_more = True
        self._closed = False

    @contextlib.contextmanager
    def lent(self, device: Device) -> Iterator[memoryview]:
        """One buffer, for as long as the context lasts. Its length differs.

        Raises:
            TransferError: the device's driver cannot pin one.
        """
        pinned = self._take(device)
        if pinned is None:
            yield memoryview(bytearray(UNPINNED_BYTES))
            return
        try:
            yield pinned.view
        finally:
            self._give_back(pinned)

    def make_no_more(self) -> None:
        """When it returns, `register` is not called any more. Who finds no buffer gets one that is not pinned. Idempotent."""
        with self._changed:
            self._makes_more = False
            self._changed.wait_for(lambda: not self._num_being_made)

    def close(self) -> None:
        """Unpins all, those that are lent once they are given back. Idempotent."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
        for pinned in idle:
            _unpin(pinned)

    def _take(self, device: Device) -> _Pinned | None:
        with self._changed:
            if self._idle:
                return self._idle.pop()
            if self._closed or not self._makes_more or self._num_pinned == MOST_PINNED:
                return None
            self._num_pinned += 1
            self._num_being_made += 1
        try:
            return self._new(device)
        except BaseException:
            with self._changed:
                self._num_pinned -= 1
            raise
        finally:
            with self._changed:
                self._num_being_made -= 1
                self._changed.notify_all()

    def _new(self, device: Device) -> _Pinned:
        view = memoryview(mmap.mmap(-1, PINNED_BYTES))
        device.pin(address_of(view), view.nbytes)
        pinned = _Pinned(view, device)
        if self._register is not None:
            try:
                self._register(view)
            except TransferError as error:  # what NICs have not registered they carry, by a copy more
                _log.warning("memory through which bytes of %s go is not registered: %s", device.name, error)
            except BaseException:
                _unpin(pinned)  # or its addresses, which will be somebody else's, could never be pinned again
                raise
        return pinned

    def _give_back(self, pinned: _Pinned) -> None:
        with self._changed:
            if not self._closed:
                self._idle.append(pinned)
                return
        _unpin(pinned)


def _unpin(pinned: _Pinned) -> None:
    try:
        pinned.device.unpin(address_of(pinned.view))
    except TransferError as error:  # a GPU that is out of order keeps nobody from closing
        _log.warning("memory of the host stays pinned for %s: %s", pinned.device.name, error)
