"""Pieces of memory that go on where the one before ended, at both ends: they are moved as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def joined(
    near: Sequence[int], lengths: Sequence[int], far: Sequence[int], room: Callable[[int, int], int]
) -> tuple[list[int], list[int], list[int]]:
    """Fewer pieces, in the same order: local addresses, lengths, and remote addresses.

    `room(here, there)` says how long a piece may be that begins so; it is asked only where there is something to join.
    """
    starts: list[int] = []
    sizes: list[int] = []
    remote: list[int] = []
    here_next = there_next = most = -1
    for here, length, there in zip(near, lengths, far, strict=True):
        if here == here_next and there == there_next:
            if most < 0:
                most = room(starts[-1], remote[-1])
            if sizes[-1] + length <= most:
                sizes[-1] += length
                here_next += length
                there_next += length
                continue
        here_next, there_next, most = here + length, there + length, -1
        starts.append(here)
        sizes.append(length)
        remote.append(there)
    return starts, sizes, remote
