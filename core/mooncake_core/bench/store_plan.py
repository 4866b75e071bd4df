"""What `mooncake bench store` does: sizes, batches, which objects each call is about. Pure: random numbers are seeded."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from msgspec import Struct, field

from mooncake_core.units import format_size, parse_size

Operation = Literal["put", "get", "exist", "mixed"]
Call = tuple[str, list[int]]
"""put, get or exist; and the objects, by number. Those below 0 are never put."""

FEWEST_CALLS: Final = 6
MOST_CALLS: Final = 2000
MOST_BATCHES: Final = 100
EXIST_BATCH: Final = 1000
EXIST_CALLS: Final = 20
EXIST_PRESENT: Final = 0.5
"""Share of the keys of an exist batch that are there, unless the load says otherwise."""


class StoreCase(Struct, frozen=True):
    """Objects of one size, so many per call."""

    object_bytes: int
    batch: int = 1

    @property
    def name(self) -> str:
        size = format_size(self.object_bytes)
        return size if self.batch == 1 else f"{size}x{self.batch}"

    @property
    def call_bytes(self) -> int:
        return self.object_bytes * self.batch


def parse_case(text: str) -> StoreCase:
    """A case in "1MiB" or "64KiBx64".

    Raises:
        ValueError: the text is none; says what is accepted.
    """
    size, times, batch = text.strip().partition("x")
    expected = f"expected a size like 1MiB, or size and objects per call like 64KiBx64, got {text!r}"
    try:
        case = StoreCase(parse_size(size), int(batch) if times else 1)
    except ValueError as error:
        raise ValueError(expected) from error
    if case.object_bytes < 1 or case.batch < 1:
        raise ValueError(expected)
    return case


class StoreLoad(Struct, frozen=True, kw_only=True):
    """The calls of one run."""

    cases: list[StoreCase]
    operations: list[str] = field(default_factory=lambda: ["put", "get", "exist"])
    case_bytes: int = 384 << 20
    """Put per case, in at most MOST_CALLS calls, MOST_BATCHES where they are batches."""
    processes: int = 1
    """That put, and as many others that get."""
    threads: int = 1
    """Of each process."""
    reads: float = 0.9
    """Share of calls of the mixed operation that get."""
    hits: float | None = None
    """Share of keys asked for that are there; None: all for get, EXIST_PRESENT for exist."""
    zipf: float = 0.0
    """Exponent of how often objects are read: 0 reads each once, in order."""
    seed: int = 0

    @property
    def workers(self) -> int:
        return self.processes * self.threads


def calls_per_worker(load: StoreLoad, case: StoreCase) -> int:
    """How many calls each thread makes to put a case."""
    most = MOST_CALLS if case.batch == 1 else MOST_BATCHES
    calls = max(FEWEST_CALLS, min(most, load.case_bytes // case.call_bytes))
    return max(1, calls // load.workers)


def num_objects(load: StoreLoad, case: StoreCase) -> int:
    """How many objects a case puts before others read them."""
    return calls_per_worker(load, case) * load.workers * case.batch


def put_bytes(load: StoreLoad) -> int:
    """What one run puts in all, also while it reads."""
    mixed = 2 if "mixed" in load.operations else 1
    return mixed * sum(num_objects(load, case) * case.object_bytes for case in load.cases)


def operations_of(load: StoreLoad, case: StoreCase) -> list[str]:
    """Puts come first, since all others read them; keys are looked up once, for the first case."""
    wanted = [operation for operation in ("get", "mixed", "exist") if operation in load.operations]
    if case != load.cases[0] and "exist" in wanted:
        wanted.remove("exist")
    return ["put", *wanted]


def calls(load: StoreLoad, case: StoreCase, operation: str) -> list[list[Call]]:
    """What each worker calls, in order: as many calls each."""
    return [list(_calls_of(load, case, operation, worker)) for worker in range(load.workers)]


def _calls_of(load: StoreLoad, case: StoreCase, operation: str, worker: int) -> Iterator[Call]:
    count = calls_per_worker(load, case)
    share = count * case.batch
    # Seeded with text, whose hash does not differ between processes.
    reading = _Reading(load, case, random.Random(f"{load.seed} {case.name} {operation} {worker}"), worker)
    if operation == "put":
        for numbers in _runs(worker * share, count, case.batch):
            yield "put", numbers
    elif operation == "get":
        for call in range(count):
            yield "get", reading.objects(worker * share + call * case.batch)
    elif operation == "exist":
        for call in range(max(1, EXIST_CALLS // load.workers)):
            yield "exist", reading.keys(call)
    else:
        new = _runs((load.workers + worker) * share, count, case.batch)
        for call in range(count):
            is_read = reading.random.random() < load.reads
            yield ("get", reading.objects(worker * share + call * case.batch)) if is_read else ("put", next(new))


def _runs(first: int, count: int, batch: int) -> Iterator[list[int]]:
    for start in range(first, first + count * batch, batch):
        yield list(range(start, start + batch))


class _Reading:
    """Chooses what one worker reads."""

    def __init__(self, load: StoreLoad, case: StoreCase, draw: random.Random, worker: int) -> None:
        self.random = draw
        self._load = load
        self._batch = case.batch
        self._total = num_objects(load, case)
        self._absent = itertools.count(-1 - worker, -load.workers)
        """No absent key is asked for twice, by nobody."""
        self._ranked = list(range(self._total))
        random.Random(load.seed).shuffle(self._ranked)  # for all workers the same objects are hot
        self._weights = zipf_weights(self._total, load.zipf) if load.zipf else []

    def objects(self, in_order: int) -> list[int]:
        """Of one get: `in_order` is where it begins when each object is read once."""
        chosen = self._hot() if self._weights else list(range(in_order, in_order + self._batch))
        hits = 1.0 if self._load.hits is None else self._load.hits
        return [number if self.random.random() < hits else next(self._absent) for number in chosen]

    def keys(self, call: int) -> list[int]:
        """Of one exist: present and absent ones spread evenly."""
        hits = EXIST_PRESENT if self._load.hits is None else self._load.hits
        present = itertools.count(call * EXIST_BATCH)
        return [
            next(present) % self._total if int((at + 1) * hits) > int(at * hits) else next(self._absent)
            for at in range(EXIST_BATCH)
        ]

    def _hot(self) -> list[int]:
        """Different ones: no call names an object twice."""
        chosen: dict[int, None] = {}
        while len(chosen) < self._batch:
            (rank,) = self.random.choices(range(self._total), cum_weights=self._weights)
            chosen[self._ranked[rank]] = None
        return list(chosen)


def zipf_weights(count: int, exponent: float) -> Sequence[float]:
    """Cumulative weights of ranks 1 to `count`, each 1 / rank ** exponent."""
    return list(itertools.accumulate(rank**-exponent for rank in range(1, count + 1)))
