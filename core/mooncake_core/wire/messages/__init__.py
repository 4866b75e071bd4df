"""The closed union of everything peers say to each other.

A message's tag is its class name. Fields may be added with a default, never removed or reused: so protocol version N
understands N+1. What must not be understood by an older peer gets a new message or a new PROTOCOL_VERSION.
"""

from __future__ import annotations

from typing import Final

import msgspec

from mooncake_core.errors import ProtocolError
from mooncake_core.wire.messages import (
    envelope,
    inspection,
    membership,
    objects,
    p2p,
    pool,
    segments,
    serving,
    tasks,
    tiering,
    timeline,
)

PROTOCOL_VERSION: Final = 3
OLDEST_PROTOCOL_VERSION: Final = 3

Message = (
    envelope.Done
    | envelope.Ping
    | envelope.Failure
    | membership.Join
    | membership.Joined
    | membership.Heartbeat
    | membership.Leave
    | membership.ChangeRole
    | membership.SwitchRole
    | pool.PutStart
    | pool.PutStarted
    | pool.PutEnd
    | pool.PutEnded
    | pool.Get
    | pool.Got
    | pool.Exists
    | pool.ExistsReply
    | pool.Remove
    | pool.Removed
    | pool.RemoveAll
    | pool.RemovedAll
    | objects.Describe
    | objects.Described
    | objects.ListKeys
    | objects.KeyList
    | objects.RemoveMatching
    | objects.RemoveReplicas
    | objects.Pin
    | objects.Pinned
    | objects.SetQuota
    | objects.ListTenants
    | objects.TenantList
    | pool.Fence
    | pool.Fenced
    | pool.ReportBlocks
    | pool.BlockReport
    | pool.ClearSlots
    | tasks.CopyObjects
    | tasks.ReplicateObjects
    | tasks.TasksStarted
    | tasks.QueryTasks
    | tasks.TaskReport
    | tasks.CancelTasks
    | tasks.TasksCancelled
    | tasks.DrainNode
    | tasks.UndrainNode
    | tasks.QueryDrains
    | tasks.Drains
    | tasks.EvictObjects
    | tasks.Evicted
    | tasks.PullObjects
    | tasks.Pulled
    | tasks.MarkDraining
    | tiering.Demote
    | tiering.Demoted
    | tiering.Promote
    | tiering.Promoted
    | tiering.ReportTiers
    | tiering.TierReport
    | tiering.ForgetTiered
    | tiering.Prefetch
    | tiering.Prefetching
    | serving.DescribeModels
    | serving.Models
    | serving.Place
    | serving.Placed
    | serving.Reserve
    | serving.Reserved
    | serving.Release
    | serving.Prefill
    | serving.Prefilled
    | serving.KVArrived
    | serving.AskKV
    | serving.KVState
    | serving.Decode
    | serving.Tokens
    | serving.PrefillEnded
    | serving.RequestEnded
    | inspection.GetStatus
    | inspection.Status
    | inspection.InspectCache
    | inspection.CacheReport
    | inspection.InspectDecisions
    | inspection.Decisions
    | segments.OpenSegment
    | segments.SegmentOpened
    | segments.Notify
    | p2p.PublishReplica
    | p2p.BeginPull
    | p2p.PullBegun
    | p2p.NextShard
    | p2p.ShardTask
    | p2p.WithdrawReplica
    | p2p.ListReplicas
    | p2p.ReplicaList
    | timeline.GetSpans
    | timeline.SpansOf
    | timeline.ListRequests
    | timeline.Requests
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """A message as MessagePack."""
    return _encoder.encode(message)


def decode(data: bytes | memoryview) -> Message:
    """The message in `data`.

    Raises:
        ProtocolError: it is none of ours, or a field is missing or of another type; says which.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ProtocolError(f"cannot understand a message of {len(data)} bytes: {error}") from error
