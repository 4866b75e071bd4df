"""What a start says of itself in its run directory."""

from __future__ import annotations

from mooncake_core.roles.run_directory import StartState


def state(cluster: str, pid: int = 7) -> StartState:
    """Of one that is ready and has no processes."""
    return StartState(
        cluster=cluster,
        selection="all",
        pid=pid,
        config="",
        master_address="tcp://127.0.0.1:1",
        gateway_url="",
        key_file="",
        processes=[],
        ready=True,
    )
