"""Routes about segments: each node has one, and it is called as the node."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from msgspec import to_builtins
from starlette.requests import Request
from starlette.responses import Response

from mooncake_core.roles.master.http.answers import INVALID_PARAMS, SEGMENT_NOT_FOUND, failure, json, text
from mooncake_core.roles.master.http.state import MasterState
from mooncake_core.wire.messages.usage import NodeUsage

STATUS = {"ready": (1, "OK"), "draining": (2, "DRAINING"), "stuck": (2, "DRAINING"), "drained": (2, "DRAINING")}
"""Of upstream's segment states; a node that does not take puts yet has none of them."""
UNDEFINED = (0, "UNDEFINED")


class SegmentRoutes:
    """How full nodes are, and how they are."""

    def __init__(self, state: MasterState) -> None:
        self._state = state

    async def get_all_segments(self, request: Request) -> Response:
        """One name per line."""
        return text("".join(f"{node.name}\n" for node in self._state.report().nodes))

    async def get_segments_detail(self, request: Request) -> Response:
        """All that is known of each."""
        leaving = self._state.leaving()
        report = self._state.report()
        details = [
            self._detail(node, leaving) | {"tiers": to_builtins(report.tiers.get(node.name, []))}
            for node in report.nodes
        ]
        return json({"total_segments": len(details), "segments": details})

    async def query_segment(self, request: Request) -> Response:
        """Used and capacity of one."""
        node = self._node(request)
        if node is None:
            return text("Failed to query segment", 500)
        return text(f"{node.name}\nUsed(bytes): {node.used_bytes}\nCapacity(bytes) : {node.capacity_bytes}\n")

    async def status(self, request: Request) -> Response:
        """Whether one takes puts."""
        name = request.query_params.get("segment", "")
        if not name:
            return failure(400, INVALID_PARAMS, "Missing segment query parameter")
        node = self._node(request)
        if node is None:
            return failure(404, SEGMENT_NOT_FOUND, "SEGMENT_NOT_FOUND")
        number, status = self._status(node, self._state.leaving())
        known = {"success": True, "segment": name, "status": number, "status_name": status}
        return json({**known, "error_code": 0, "error_message": ""})

    def _node(self, request: Request) -> NodeUsage | None:
        name = request.query_params.get("segment", "")
        return next((node for node in self._state.report().nodes if node.name == name), None)

    def _status(self, node: NodeUsage, leaving: Set[str]) -> tuple[int, str]:
        drain = self._state.drain_of(node.name)
        state = "draining" if node.name in leaving else drain.state if drain else node.state
        return STATUS.get(state, UNDEFINED)

    def _detail(self, node: NodeUsage, leaving: Set[str]) -> dict[str, Any]:
        return {
            "segment_name": node.name,
            "segment_id": node.name,
            "client_id": node.name,
            "base_address": "0x0",
            "size_bytes": node.capacity_bytes,
            "size_human": f"{node.capacity_bytes / (1 << 30):.6g} GiB",
            "te_endpoint": self._state.members.address_of(node.name).removeprefix("tcp://"),
            "protocol": "tcp",
            "status": self._status(node, leaving)[1],
            "allocator_used_bytes": node.used_bytes,
            "allocator_capacity_bytes": node.capacity_bytes,
            "allocator_usage_percent": 100 * node.used_bytes / max(1, node.capacity_bytes),
        }
