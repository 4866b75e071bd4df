"""Parts of objects: read them in any order, and write objects part by part."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from mooncake._arguments import each, spread, the_keys
from mooncake._codes import Code, code_of
from mooncake._link import Link, put_options
from mooncake._pointers import Addresses, PointerCalls, Sizes
from mooncake._replicas import DEFAULT, ReplicateConfig, groups_fit
from mooncake_core.store.blocking import OpenGet, OpenPut
from mooncake_core.store.reading import Cut
from mooncake_core.transfer.slices import total_bytes
from mooncake_core.wire.messages.pool import NewObject

Offsets = Sequence[int]
Parts = list[tuple[int, list[memoryview]]]
BEYOND_ANY_SIZE: Final = 1 << 64
Session = TypeVar("Session", OpenPut, OpenGet)


class RangeCalls(PointerCalls):
    """A session names objects by their keys, until it is ended."""

    def __init__(self) -> None:
        super().__init__()
        self._sessions = threading.Lock()
        self._puts: dict[str, tuple[OpenPut, int, int]] = {}
        """Key → its session, its place there, its size."""
        self._gets: dict[str, tuple[OpenGet, int, int]] = {}

    def get_into_ranges(
        self,
        buffer_ptrs: Addresses,
        all_keys: Sequence[Sequence[str]],
        all_dst_offsets: Sequence[Sequence[Offsets]],
        all_src_offsets: Sequence[Sequence[Offsets]],
        all_sizes: Sequence[Sequence[Sizes]],
    ) -> list[list[list[int]]]:
        """Reads parts of objects into registered buffers: of buffer i, from its key j, part k. Bytes read or a code, nested
        likewise."""
        plan = list(zip(buffer_ptrs, all_keys, all_dst_offsets, all_src_offsets, all_sizes, strict=False))
        if not len(plan) == len(buffer_ptrs) == len(all_keys) == len(all_sizes):
            return [[[int(Code.INVALID_PARAMS)]]]
        return [self._fill(*row) for row in plan]

    def batch_get_session_start(self, keys: Sequence[str]) -> list[int]:
        """Takes a lease on objects, to read parts of them; 0 or a code each."""
        wanted = the_keys(keys)

        def work(link: Link) -> list[int]:
            opened = link.store.begin_get(wanted)
            codes = []
            with self._sessions:
                for index, key in enumerate(wanted):
                    size_bytes = opened.size_bytes(index)
                    codes.append(int(Code.OBJECT_NOT_FOUND if size_bytes is None else Code.OK))
                    if size_bytes is not None:
                        self._gets[key] = (opened, index, size_bytes)
            return codes

        return self._ask(work, lambda code: each(code, wanted))

    def batch_get_into_multi_buffer_ranges(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Addresses],
        all_sizes: Sequence[Sizes],
        all_src_offsets: Sequence[Offsets],
    ) -> list[int]:
        """Reads parts of objects of a get session into registered memory; bytes read or a code each."""

        wanted = the_keys(keys)
        codes, sessions = self._plan(wanted, self._gets, all_buffer_ptrs, all_sizes, all_src_offsets)
        for opened, members in sessions.items():
            cuts: dict[int, list[Cut]] = {}
            for _, index, parts in members:  # a key may be named more than once
                cuts.setdefault(index, []).extend(parts)
            read = self._ask(lambda link: opened.read(cuts), lambda code: {})  # noqa: B023 (called at once)
            for place, index, parts in members:
                codes[place] = _length(parts) if read.get(index) else int(Code.TRANSFER_FAIL)
        return codes

    def batch_get_session_end(self, keys: Sequence[str]) -> int:
        """Forgets the sessions of these keys; their lease ends by itself."""
        with self._sessions:
            for key in the_keys(keys):
                self._gets.pop(key, None)
        return Code.OK

    def batch_put_session_start(
        self, keys: Sequence[str], sizes: Sizes, config: ReplicateConfig = DEFAULT
    ) -> list[int]:
        """Space for objects that are then written part by part; 0 or a code each. The master takes it back after its writer
        deadline."""
        wanted = the_keys(keys)
        if len(wanted) != len(sizes) or not groups_fit(config, wanted) or any(key in self._puts for key in wanted):
            return each(Code.INVALID_PARAMS, wanted)
        groups = config.group_ids or [""] * len(wanted)
        good = [index for index, size in enumerate(sizes) if 0 < size < BEYOND_ANY_SIZE]
        objects = [NewObject(key=wanted[index], size_bytes=sizes[index], group=groups[index]) for index in good]

        def work(link: Link) -> list[int]:
            opened = link.store.begin_put(objects, replicas=max(1, config.replica_num), options=put_options(config))
            with self._sessions:
                for index, (new, code) in enumerate(zip(objects, opened.refusals, strict=True)):
                    if not code:
                        self._puts[new.key] = (opened, index, new.size_bytes)
            return [code_of(code) for code in opened.refusals]

        return spread(len(wanted), good, self._ask(work, lambda code: each(code, objects)))

    def batch_put_from_multi_buffer_ranges(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Addresses],
        all_sizes: Sequence[Sizes],
        all_dst_offsets: Sequence[Offsets],
    ) -> list[int]:
        """Writes registered memory to parts of objects of a put session; bytes written or a code each."""

        wanted = the_keys(keys)
        codes, sessions = self._plan(wanted, self._puts, all_buffer_ptrs, all_sizes, all_dst_offsets)
        for opened, members in sessions.items():
            writes = [(index, offset, pieces) for _, index, parts in members for offset, pieces in parts]
            good = self._ask(lambda link: opened.write(writes), lambda code: set())  # noqa: B023 (called at once)
            for place, index, parts in members:
                codes[place] = _length(parts) if index in good else int(Code.TRANSFER_FAIL)
        return codes

    def batch_put_session_end(self, keys: Sequence[str]) -> list[int]:
        """Makes the objects readable, each of whose bytes must have been written; 0 or a code each."""
        return self._end_puts(the_keys(keys), commit=True)

    def batch_put_session_revoke(self, keys: Sequence[str]) -> list[int]:
        """Gives the objects' space back; 0 or a code each."""
        return self._end_puts(the_keys(keys), commit=False)

    def close(self) -> int:
        """Also gives back the space of put sessions that were not ended."""
        if self._puts:
            self.batch_put_session_revoke(list(self._puts))
        self._gets.clear()
        return super().close()

    def _fill(
        self, address: int, keys: Sequence[str], at: Sequence[Offsets], of: Sequence[Offsets], sizes: Sequence[Sizes]
    ) -> list[list[int]]:
        """Reads into one buffer."""
        wanted = the_keys(keys)
        if not len(wanted) == len(at) == len(of) == len(sizes):
            return [[int(Code.INVALID_PARAMS)] for _ in wanted]
        buffer = self._registered.rest(address) or memoryview(b"")
        plans = [_cuts(buffer, *row) for row in zip(at, sizes, of, strict=True)]
        good = [index for index, parts in enumerate(plans) if parts is not None]
        cuts: list[Sequence[Cut]] = [parts for parts in plans if parts is not None]

        def work(link: Link) -> list[int]:
            return [code_of(code) for code in link.store.read_ranges([wanted[index] for index in good], cuts)]

        codes = spread(len(wanted), good, self._ask(work, lambda code: each(code, good)))
        return [
            list(lengths) if code == Code.OK else [code] * len(lengths)
            for code, lengths in zip(codes, sizes, strict=True)
        ]

    def _plan(
        self,
        keys: Sequence[str],
        known: Mapping[str, tuple[Session, int, int]],
        all_buffer_ptrs: Sequence[Addresses],
        all_sizes: Sequence[Sizes],
        all_offsets: Sequence[Offsets],
    ) -> tuple[list[int], dict[Session, list[tuple[int, int, Parts]]]]:
        """INVALID_PARAMS for each key; and by session what is good: its place in the call, that in the session, its parts."""
        codes = each(Code.INVALID_PARAMS, keys)
        sessions: dict[Session, list[tuple[int, int, Parts]]] = {}
        if not len(keys) == len(all_buffer_ptrs) == len(all_sizes) == len(all_offsets):
            return codes, sessions
        for place, (key, *row) in enumerate(zip(keys, all_buffer_ptrs, all_sizes, all_offsets, strict=True)):
            parts = self._parts(*row)
            if key not in known or parts is None:
                continue
            opened, index, size_bytes = known[key]
            if all(offset + total_bytes(pieces) <= size_bytes for offset, pieces in parts):
                sessions.setdefault(opened, []).append((place, index, parts))
        return codes, sessions

    def _parts(self, addresses: Addresses, sizes: Sizes, offsets: Offsets) -> Parts | None:
        """(Offset in the object, memory) of each part; None where something does not fit."""
        views = self._registered.views(addresses, sizes)
        if views is None or len(views) != len(offsets) or any(offset < 0 for offset in offsets):
            return None
        return [(offset, [view]) for offset, view in zip(offsets, views, strict=True)]

    def _end_puts(self, keys: Sequence[str], *, commit: bool) -> list[int]:
        codes = each(Code.INVALID_PARAMS, keys)
        together: dict[OpenPut, list[tuple[int, int]]] = {}
        with self._sessions:
            for place, key in enumerate(keys):
                if (known := self._puts.pop(key, None)) is not None:
                    together.setdefault(known[0], []).append((place, known[1]))
        for opened, members in together.items():
            indexes = [index for _, index in members]
            ended = self._ask(
                lambda link: [code_of(code) for code in opened.end(indexes, commit=commit)],  # noqa: B023
                lambda code: [code] * len(indexes),  # noqa: B023
            )
            for (place, _), code in zip(members, ended, strict=True):
                codes[place] = int(Code.OK) if not commit and code == Code.TRANSFER_FAIL else code
        return codes


def _length(parts: Parts) -> int:
    return sum(total_bytes(pieces) for _, pieces in parts)


def _cuts(buffer: memoryview, at: Offsets, sizes: Sizes, of: Offsets) -> Parts | None:
    """(Offset in the object, part of the buffer) of each part; None where one does not fit."""
    if not len(at) == len(sizes) == len(of) or min([0, *at, *sizes, *of]) < 0:
        return None
    views = [buffer[start : start + size] for start, size in zip(at, sizes, strict=True)]
    if [view.nbytes for view in views] != list(sizes):
        return None
    return [(offset, [view]) for offset, view in zip(of, views, strict=True)]
