"""One process of `mooncake bench store`, as a script: `PYTHON worker.py JSON`.

The argument says who it is: a segment, which contributes memory and waits, or a client. A client then reads one JSON line
per phase from stdin and answers with one line; both end with stdin. Every object has bytes of its own, a reader's memory
holds other bytes before each call, and what was read is compared after it, outside of the timed part.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
import os
import random
import sys
import threading
import time
from typing import Any

SEED = 7
SPREAD_BYTES = (1 << 20) + 13
"""Objects begin at so many different places of the same random bytes."""
STRIDE = 7919
"""From one object's beginning to the next one's; a prime, so that neighbours share no alignment."""
POISON = 0xA5

memcmp = ctypes.CDLL(None).memcmp
memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Wrong(Exception):
    """A call did not answer as it must, or bytes are not those that were put."""


class NotInstalled(Wrong):
    """The interpreter lacks what is to be measured."""


class Payload:
    """The bytes of object N: random ones, that begin elsewhere for each object."""

    def __init__(self, object_bytes: int) -> None:
        self._bytes = object_bytes
        self._all = ctypes.create_string_buffer(random.Random(SEED).randbytes(object_bytes + SPREAD_BYTES))

    def write(self, number: int, address: int) -> None:
        """Puts the object's bytes at an address."""
        ctypes.memmove(address, self._at(number), self._bytes)

    def is_at(self, number: int, address: int) -> bool:
        """Whether the object's bytes are at an address."""
        return bool(memcmp(address, self._at(number), self._bytes) == 0)

    def _at(self, number: int) -> int:
        return ctypes.addressof(self._all) + number * STRIDE % SPREAD_BYTES


class Memory:
    """Registered memory for as many objects as one call moves."""

    def __init__(self, store: Any, num_bytes: int) -> None:
        self._store = store
        self._map = mmap.mmap(-1, num_bytes)
        self._view = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._view)
        self.num_bytes = num_bytes
        expect(store.register_buffer(self.address, num_bytes), 0, "register_buffer")

    def poison(self) -> None:
        ctypes.memset(self.address, POISON, self.num_bytes)

    def close(self) -> None:
        self._store.unregister_buffer(self.address)
        del self._view
        self._map.close()


class Caller:
    """Makes one thread's calls. Object numbers below 0 are of objects that nobody puts."""

    def __init__(self, store: Any, phase: dict[str, Any], payload: Payload) -> None:
        self._store = store
        self._tag: str = phase["tag"]
        self._bytes: int = phase["object_bytes"]
        self._payload = payload
        self._memory = Memory(store, max(1, phase["batch"] * self._bytes))

    def prepare(self, kind: str, numbers: list[int]) -> None:
        """What comes before the clock runs."""
        if kind == "put":
            for index, number in enumerate(numbers):
                self._payload.write(number, self._address(index))
        elif kind == "get":
            self._memory.poison()

    def call(self, kind: str, numbers: list[int]) -> Any:
        """The timed part."""
        keys = [self.key(number) for number in numbers]
        if kind == "exist":
            return self._store.batch_is_exist(keys)
        addresses = [self._address(index) for index in range(len(keys))]
        sizes = [self._bytes] * len(keys)
        if len(keys) > 1:
            batch = self._store.batch_put_from if kind == "put" else self._store.batch_get_into
            return batch(keys, addresses, sizes)
        single = self._store.put_from if kind == "put" else self._store.get_into
        return [single(keys[0], addresses[0], self._bytes)]

    def check(self, kind: str, numbers: list[int], answers: Any) -> None:
        """Every answer, and every byte that was read."""
        if len(answers) != len(numbers):
            raise Wrong(f"{kind} of {len(numbers)} objects gave {len(answers)} answers")
        for index, (number, answer) in enumerate(zip(numbers, answers)):  # noqa: B905 (older interpreters)
            if kind == "get" and number < 0:
                if answer >= 0:
                    raise Wrong(f"get of {self.key(number)}, which nobody put, answered {answer}")
                continue
            wanted = {"put": 0, "get": self._bytes, "exist": int(number >= 0)}[kind]
            expect(answer, wanted, f"{kind} of {self.key(number)}")
            if kind == "get" and not self._payload.is_at(number, self._address(index)):
                raise Wrong(f"{self.key(number)} came back with other bytes")

    def key(self, number: int) -> str:
        return f"{self._tag}-{number}" if number >= 0 else f"{self._tag}-absent{number}"

    def close(self) -> None:
        self._memory.close()

    def _address(self, index: int) -> int:
        return self._memory.address + index * self._bytes


class Phase:
    """Calls of several threads. With more than one, each call of all begins together."""

    def __init__(self, store: Any, phase: dict[str, Any]) -> None:
        self._calls: list[list[tuple[str, list[int]]]] = phase["calls"]
        payload = Payload(phase["object_bytes"])
        self._callers = [Caller(store, phase, payload) for _ in self._calls]
        self._barrier = threading.Barrier(len(self._calls))
        self._spans: list[list[tuple[str, float, float, int]]] = [[] for _ in self._calls]
        self._errors: list[str] = []

    def run(self) -> dict[str, Any]:
        """Per thread and call: (kind, began, ended, bytes moved)."""
        threads = [threading.Thread(target=self._run, args=(index,)) for index in range(len(self._calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for caller in self._callers:
            caller.close()
        return {"error": self._errors[0]} if self._errors else {"spans": self._spans}

    def _run(self, thread: int) -> None:
        caller, spans = self._callers[thread], self._spans[thread]
        try:
            for kind, numbers in self._calls[thread]:
                caller.prepare(kind, numbers)
                self._barrier.wait()
                began = time.perf_counter()
                answers = caller.call(kind, numbers)
                ended = time.perf_counter()
                self._barrier.wait()
                caller.check(kind, numbers, answers)
                moved = sum(answer for answer in answers if answer > 0) if kind == "get" else 0
                spans.append((kind, began, ended, moved))
        except threading.BrokenBarrierError:
            pass  # another thread says why
        except Exception as error:
            self._errors.append(str(error) if isinstance(error, Wrong) else repr(error))
            self._barrier.abort()


def expect(answer: Any, wanted: int, what: str) -> None:
    if answer != wanted:
        raise Wrong(f"{what} answered {answer}, expected {wanted}")


def connect(boot: dict[str, Any]) -> Any:
    """A store that is set up."""
    try:
        store = importlib.import_module("mooncake.store").MooncakeDistributedStore()
    except ModuleNotFoundError as error:
        raise NotInstalled(
            f"{sys.executable} has no mooncake.store ({error}): pip install ./dropin, or upstream's wheel"
        ) from None
    code = store.setup(
        boot["hostname"],
        "P2PHANDSHAKE",
        boot["segment_bytes"],
        boot["buffer_bytes"],
        boot["protocol"],
        "",
        boot["master"],
    )
    expect(code, 0, f"setup at {boot['hostname']} with master {boot['master']}")
    return store


def remove(store: Any, tag: str, numbers: list[int]) -> dict[str, Any]:
    """Removes what a run put into a cluster that others use too."""
    return {"removed": sum(store.remove(f"{tag}-{number}", True) == 0 for number in numbers)}


def main() -> None:
    """Says that it is ready, does what it is told, and ends with stdin."""
    answers = os.fdopen(os.dup(1), "w")  # libraries may print to the standard output
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        store = connect(json.loads(sys.argv[1]))
    except Exception as error:
        text = str(error) if isinstance(error, Wrong) else repr(error)
        answer({"error": text, "not_installed": isinstance(error, NotInstalled)})
        return
    answer({"ready": True})
    for line in sys.stdin:
        phase = json.loads(line)
        answer(remove(store, phase["tag"], phase["remove"]) if "remove" in phase else Phase(store, phase).run())
    store.close()


if __name__ == "__main__":
    main()
