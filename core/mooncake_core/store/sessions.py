"""A get session: objects under one lease, of which ranges are read in any order for as long as the lease is renewed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mooncake_core.store.reading import Cut, Reading

if TYPE_CHECKING:
    from mooncake_core.store.client import StoreClient


class GetSession:
    """Made by StoreClient.begin_get_session; objects are named by their place in it. One call at a time. Nothing has to end
    it: the lease does."""

    def __init__(self, client: StoreClient, keys: Sequence[str], reading: Reading) -> None:
        self._client = client
        self._keys = keys
        self._reading = reading

    @property
    def deadline(self) -> float:
        """time.monotonic() at which the lease ends."""
        return self._reading.deadline

    def size_bytes(self, index: int) -> int | None:
        """None for an object that cannot be read, or not any more."""
        return self._reading.size_bytes(index)

    async def read(self, cuts: Mapping[int, Sequence[Cut]], *, timeout_s: float) -> dict[int, bool]:
        """Reads (offset, pieces) of objects; whether all of an object's came. As Reading.read_ranges."""
        return await self._reading.read_ranges(cuts, timeout_s=timeout_s)

    async def renew(self, *, timeout_s: float) -> list[bool]:
        """Takes the lease anew; which objects can still be read. One that was replaced since cannot: begin another session."""
        got, deadline = await self._client.locate(self._keys, timeout_s=timeout_s)
        return self._reading.renewed(got, deadline)
