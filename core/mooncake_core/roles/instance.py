"""What prefill and decode roles share: an engine, its memory made reachable, and membership."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence

from mooncake_core.address import HostPort
from mooncake_core.conductor.cost import hint_of
from mooncake_core.conductor.role_planning import Role
from mooncake_core.config.processes import local_node_name
from mooncake_core.config.schema import InstanceConfig
from mooncake_core.inference.batching import Batching
from mooncake_core.inference.contract import Engine, EngineInfo
from mooncake_core.inference.loading import load_engine
from mooncake_core.inference.loop import EngineLoop
from mooncake_core.inference.models import model_name
from mooncake_core.roles.context import RoleContext
from mooncake_core.roles.metrics import MetricsPort
from mooncake_core.roles.timeline import timeline_handlers
from mooncake_core.transfer.contract import Range
from mooncake_core.units import format_size
from mooncake_core.wire.member import Member
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.membership import ChangeRole, InstanceLoad, InstanceOffer, Join, ModelOffer
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.server import Call, Handler, Server

_log = logging.getLogger(__name__)


class Instance:
    """An engine in a process: KV memory registered with the Transfer Engine, steps run in a loop of their own."""

    def __init__(self, context: RoleContext, engine: Engine) -> None:
        section = _section(context)
        self.context = context
        self.section = section
        self.engine = engine
        self.info = engine.info
        self.block_bytes = engine.info.layout.block_bytes
        self.block_tokens = engine.info.layout.block_tokens
        self.layer_bytes = self.block_bytes // engine.info.layout.num_layers
        self.transfer = context.transfer_engine(section.host, section.data_port)
        self.region = self.transfer.register_memory(engine.kv_memory, engine.kv_descriptor)
        self._metrics = MetricsPort(section.host, section.metrics_port, self.transfer)
        self.loop = EngineLoop(engine, _batching(engine, section))
        self.sequence_ids = itertools.count(1)
        """For all roles that it ever has: the engine may keep what it knows of a sequence."""
        self._next_role: Role | None = None
        self._changes = asyncio.Event()
        """It is to change its role."""

    @classmethod
    async def load(cls, context: RoleContext) -> Instance:
        """Loads the engine off the event loop, so that the process can be told to stop meanwhile."""
        engine = await asyncio.to_thread(load_engine, context.config, _section(context))
        _log.info("KV memory: %s", _arithmetic(engine.info))
        return cls(context, engine)

    def block(self, block_id: int) -> memoryview:
        """One block's bytes in the engine's KV memory."""
        return self.engine.kv_memory[block_id * self.block_bytes : (block_id + 1) * self.block_bytes]

    def layers(self, block_id: int, first: int, last: int) -> memoryview:
        """The bytes of layers first to last - 1 of one block."""
        start = block_id * self.block_bytes
        return self.engine.kv_memory[start + first * self.layer_bytes : start + last * self.layer_bytes]

    def export_blocks(self, block_ids: Sequence[int]) -> SegmentDescriptor:
        """Lets a peer write to just these blocks."""
        ranges = [Range(block_id * self.block_bytes, self.block_bytes) for block_id in block_ids]
        return self.transfer.export(self.region, writable=True, ranges=ranges)

    async def serve(self, role: Role, handlers: Mapping[type, Handler], is_busy: Callable[[], bool]) -> Role | None:
        """Answers requests as a member of the cluster until told to stop, or to change its role; then finishes what runs,
        within drain_timeout. What is left is broken off: the gateway takes it elsewhere. Returns the next role."""
        self._next_role = None
        self._changes.clear()
        handlers = {**handlers, **timeline_handlers(self.context.spans), ChangeRole: self._change_role}
        server = Server(self.context.name, handlers, key=self.context.key)
        try:
            address = await server.start(HostPort(self.section.host, 0))
            member = Member(
                self.context.clients.get(self.context.master_address),
                join=lambda: self._join(role, address),
                load=self._load,
                on_joined=lambda joined: self.context.announce(address.url, metrics_url=self._metrics.url),
            )
            await self.context.serve(member, lambda: self.context.idle(is_busy), until=self._changes)
        finally:
            await server.close()
        return None if self.context.stop.is_set() else self._next_role

    async def close(self) -> None:
        """Ends the steps, then the transfers, then frees the memory they used."""
        await self._metrics.close()
        await self.loop.close()
        await self.context.clients.close()
        self.transfer.close()
        self.engine.close()

    def _change_role(self, message: ChangeRole, call: Call) -> Done:
        self._next_role = message.role
        self._changes.set()
        return Done()

    def _load(self) -> InstanceLoad:
        return self.loop.load()

    def _join(self, role: Role, address: HostPort) -> Join:
        context, info = self.context, self.info
        return Join(
            name=context.name,
            role=role,
            host_id=context.host_id,
            incarnation=context.incarnation,
            control_address=address.url,
            pid=os.getpid(),
            instance=InstanceOffer(
                model=ModelOffer(
                    name=model_name(context.config.model, context.config.served_name),
                    fingerprint=info.fingerprint,
                    block_tokens=info.layout.block_tokens,
                    block_bytes=info.layout.block_bytes,
                    max_context_tokens=info.max_context_tokens,
                    vocab_size=info.vocab_size,
                ),
                num_blocks=info.num_blocks,
                local_node=local_node_name(context.spec),
                cost=hint_of(self.section.engine.cost) if self.section.engine.cost else info.cost,
            ),
        )


def _section(context: RoleContext) -> InstanceConfig:
    section = context.spec.section
    assert isinstance(section, InstanceConfig)  # what config.processes gives prefill and decode
    return section


def _arithmetic(info: EngineInfo) -> str:
    """How many tokens the KV memory holds, and why."""
    layout = info.layout
    return (
        f"{layout.num_layers} layers x 2 x {layout.num_kv_heads} KV heads x {layout.head_dim} x {layout.element_bytes} "
        f"bytes = {format_size(layout.token_bytes)} per token; {info.num_blocks} blocks of {layout.block_tokens} tokens "
        f"({format_size(layout.block_bytes)} each) = {format_size(info.num_blocks * layout.block_bytes)} for "
        f"{info.num_blocks * layout.block_tokens} tokens, {info.num_blocks * layout.block_tokens // info.max_context_tokens} "
        f"sequences of the longest context ({info.max_context_tokens})"
    )


def _batching(engine: Engine, section: InstanceConfig) -> Batching:
    return Batching(
        num_blocks=engine.info.num_blocks,
        block_tokens=engine.info.layout.block_tokens,
        max_batch=section.engine.max_batch,
        chunk_tokens=section.engine.chunk_tokens,
    )
