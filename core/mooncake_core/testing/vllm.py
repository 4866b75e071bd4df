"""Unchanged vLLM engines that keep their KVCache in a pool, for tests and for `scripts/try-vllm`."""

from __future__ import annotations

import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

from mooncake_core.inference.models import resolve_model
from mooncake_core.testing.cluster import wait_for
from mooncake_core.wire.messages.inspection import CacheReport, InspectCache
from mooncake_core.wire.sync import SyncClient

READY_S: Final = 240.0
ANSWER_S: Final = 120.0
STORED_S: Final = 30.0
END_S: Final = 30.0
BLOCK_TOKENS: Final = 32
"""vLLM on CPU wants a multiple of 32."""
SEGMENT: Final = "256MB"
WORDS: Final = "and it came to pass in those days that all the people of the land came unto the king of the city"
Role = Literal["kv_both", "kv_producer", "kv_consumer"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine made of a prompt."""

    tokens: list[int]
    prompt_tokens: int
    cached_tokens: int

    @property
    def num_blocks(self) -> int:
        """Full ones of its prompt."""
        return self.prompt_tokens // BLOCK_TOKENS

    @property
    def most_cached_tokens(self) -> int:
        """All of its prompt that a pool can bring: full blocks, and at least one token is computed."""
        return (self.prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS


class VllmEngine:
    """One vLLM engine in a process of its own, with the demo model on CPU."""

    def __init__(self, python: str, folder: Path, name: str, *, master: str = "", role: Role = "kv_both") -> None:
        """`python` is the interpreter that has vLLM and the drop-in; without a master it keeps its cache to itself.

        Raises:
            AssertionError: it did not start; with the end of its log.
        """
        self.log_path = folder / f"{name}.log"
        environ = _environ(folder, name, master)
        reading, writing = os.pipe()
        options = json.dumps(_options(master, role))
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [str(Path(python).absolute()), "-m", "mooncake_core.testing.vllm_instance", str(writing), options],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environ,
                pass_fds=[writing],
                cwd=folder,
            )
        os.close(writing)
        self._results = os.fdopen(reading)
        self._receive(READY_S)

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def generate(self, prompts: Sequence[str]) -> list[Answer]:
        """Greedy answers."""
        assert self.process.stdin is not None  # asked for above
        self.process.stdin.write(json.dumps(list(prompts)).encode() + b"\n")
        self.process.stdin.flush()
        return [Answer(**answer) for answer in self._receive(ANSWER_S)]

    def close(self) -> None:
        """Ends the process. Idempotent."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._results.close()

    def _receive(self, patience_s: float) -> list[dict[str, Any]]:
        deadline = time.monotonic() + patience_s
        while not select.select([self._results], [], [], 0.2)[0]:
            self._check(self.process.poll() is None, "it ended")
            self._check(time.monotonic() < deadline, f"it was silent for {patience_s:g}s")
        line = self._results.readline()
        self._check(bool(line), "it ended")
        answers: list[dict[str, Any]] = json.loads(line)
        return answers

    def _check(self, good: bool, why: str) -> None:
        if good:
            return
        threading.Thread(target=self.close, daemon=True).start()
        end = "\n".join(self.log_path.read_text(errors="replace").splitlines()[-40:])
        raise AssertionError(f"{why}; the end of {self.log_path}:\n{end}")


def _environ(folder: Path, name: str, master: str) -> dict[str, str]:
    environ = {
        **os.environ,
        "PYTHONHASHSEED": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "HF_HUB_OFFLINE": "1",
    }
    if master:
        config = folder / f"{name}.json"
        config.write_text(json.dumps(_store(master)))
        environ["MOONCAKE_CONFIG_PATH"] = str(config)
    return environ


def _store(master: str) -> dict[str, Any]:
    return {
        "metadata_server": "P2PHANDSHAKE",
        "master_server_address": master,
        "protocol": "tcp",
        "global_segment_size": SEGMENT,
        "local_buffer_size": "64MB",
    }


def _options(master: str, role: Role) -> dict[str, Any]:
    options: dict[str, Any] = {
        "model": str(resolve_model("demo")),
        "dtype": "float32",
        "block_size": BLOCK_TOKENS,
        "max_model_len": 2048,
        "enforce_eager": True,
        "max_tokens": 16,
    }
    if master:
        options["kv_transfer_config"] = {"kv_connector": "MooncakeStoreConnector", "kv_role": role}
    return options


def await_objects(master: str, count: int) -> None:
    """Returns when the pool holds so many: vLLM stores behind its answers, and does not say when it has.

    Raises:
        AssertionError: that did not come about.
    """
    client = SyncClient(f"tcp://{master}", name="test")
    try:
        wait_for(lambda: client.call(InspectCache(), CacheReport, timeout_s=10).num_objects >= count, STORED_S)
    finally:
        client.close()


def prompts(count: int, num_words: int = 150) -> list[str]:
    """Prompts that share no beginning."""
    words = WORDS.split()
    return [
        " ".join(words[(index * 7 + number * (index + 3)) % len(words)] for number in range(num_words))
        for index in range(count)
    ]
