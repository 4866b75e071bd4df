"""Stands in for `nixl._api` where there is no NIXL: as much of it as the comparison calls, over an endpoint of this project."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

from mooncake_core.transfer import Endpoint, Kind, Span


class ThreadSync(enum.Enum):
    NIXL_THREAD_SYNC_NONE = 0
    NIXL_THREAD_SYNC_STRICT = 1


class AgentConfig:
    def __init__(self, *, enable_prog_thread: bool, sync_mode: ThreadSync) -> None:
        pass


class Request:
    """Done with the second question."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def release(self) -> None:
        self.arguments = ()


class Agent:
    def __init__(self, name: str, config: AgentConfig) -> None:
        print(f"{name} logs to where answers go")
        self._endpoint = Endpoint("127.0.0.1")

    def register_memory(self, rows: Sequence[tuple[int, int, int, str]], kind: str) -> None:
        for address, length, _, _ in rows:
            self._endpoint.register_memory(Span(address, length))

    def get_agent_metadata(self) -> bytes:
        return self._endpoint.name.encode()

    def add_remote_agent(self, metadata: bytes) -> str:
        return metadata.decode()

    def prep_xfer_dlist(self, agent: str, rows: Any, kind: str) -> tuple[str, Any]:
        return agent, rows

    def make_prepped_xfer(self, operation: str, near: Any, near_rows: Any, far: Any, far_rows: Any) -> Request:
        return Request(operation, far[0], near[1][near_rows].tolist(), far[1][far_rows].tolist())

    def transfer(self, request: Request) -> str:
        return "PROC"

    def check_xfer_state(self, request: Request) -> str:
        operation, agent, near, far = request.arguments
        pieces = self._endpoint.views([row[0] for row in near], [row[1] for row in near])
        peer = self._endpoint.open(agent)
        self._endpoint.move(Kind[operation], peer, pieces, [row[0] for row in far])
        return "DONE"


nixl_thread_sync_t, nixl_agent_config, nixl_agent = ThreadSync, AgentConfig, Agent
