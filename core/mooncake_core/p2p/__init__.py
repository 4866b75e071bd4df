"""The P2P store: large objects, such as checkpoints, copied between processes; whoever has fetched one is a source of it."""

from mooncake_core.p2p.store import P2PStore
from mooncake_core.wire.messages.p2p import ReplicaDescription

__all__ = ["P2PStore", "ReplicaDescription"]
