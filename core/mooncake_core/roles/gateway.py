"""The gateway role: the HTTP API in a process of its own, so that tokenizing and streaming never delay metadata."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import time
from typing import Final

from mooncake_core.address import HostPort, is_wildcard, parse_host_port
from mooncake_core.config.schema import GatewayConfig
from mooncake_core.errors import WireError
from mooncake_core.gateway.app import Gateway
from mooncake_core.gateway.request_log import RequestLog
from mooncake_core.gateway.serving import ClusterServing
from mooncake_core.gateway.tokenizer import Tokenizer
from mooncake_core.inference.models import resolve_model
from mooncake_core.roles.context import DRAIN_POLL_S, RoleContext
from mooncake_core.roles.http_server import HttpServer, listen, local_url
from mooncake_core.roles.timeline import timeline_handlers
from mooncake_core.wire.member import Member
from mooncake_core.wire.messages.membership import Join
from mooncake_core.wire.messages.timeline import ListRequests, Requests
from mooncake_core.wire.server import Call, Handler, Server

ERRORS_SENT_S: Final = 0.5
"""How long clients may take to read why their requests were ended."""


async def run(context: RoleContext) -> None:
    """Serves until told to stop."""
    section = context.spec.section
    assert isinstance(section, GatewayConfig)  # what config.processes gives a gateway
    folder = resolve_model(context.config.model)
    tokenizer = functools.cache(lambda: Tokenizer(folder))
    tokenizer()  # a model without one must fail now, not at the first request
    master = context.clients.get(context.master_address)
    log = RequestLog(context.spans)
    control = Server(context.name, {**timeline_handlers(context.spans), **log_handlers(log)}, key=context.key)
    control_address = await control.start(HostPort(_control_host(section.host, context.master_address), 0))
    serving = ClusterServing(master, context.clients, context.spans, patience_s=section.patience)
    listener = listen(HostPort(section.host, section.port), what="the HTTP API", setting="gateway.port")
    url = local_url(section.host, listener)
    gateway = Gateway(serving, section, tokenizer, log)
    server = HttpServer(gateway.app(), listener)
    member = Member(
        master,
        join=lambda: _join(context, control_address.url),
        load=lambda: None,
        on_joined=lambda _: context.announce(url),
    )
    try:
        await context.serve(member, lambda: _finish(context, gateway, server))
    finally:
        await server.close()
        await serving.close()
        await control.close()
        await context.clients.close()


async def _finish(context: RoleContext, gateway: Gateway, server: HttpServer) -> None:
    """New requests are refused, those under way finish; what is left at the end is ended with an error."""
    gateway.refuse_new()
    await context.idle(gateway.is_busy)
    gateway.end_open()
    deadline = time.monotonic() + ERRORS_SENT_S
    while gateway.is_busy() and time.monotonic() < deadline:  # noqa: ASYNC110 (clients read as they like)
        await asyncio.sleep(DRAIN_POLL_S)
    if gateway.is_busy():
        server.abort_connections()


def log_handlers(log: RequestLog) -> dict[type, Handler]:
    """Answers which requests came lately."""

    def latest(message: ListRequests, call: Call) -> Requests:
        return Requests(requests=log.latest(message.limit))

    return {ListRequests: latest}


def _join(context: RoleContext, control_address: str) -> Join:
    return Join(
        name=context.name,
        role="gateway",
        host_id=context.host_id,
        incarnation=context.incarnation,
        control_address=control_address,
        pid=os.getpid(),
    )


def _control_host(host: str, master_address: str) -> str:
    """Where the master finds this process: its host, or, where that is a wildcard, the address that faces the master."""
    if not is_wildcard(host):
        return host
    master = parse_host_port(master_address)
    try:
        family, kind, _, _, address = socket.getaddrinfo(master.host, master.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # of a datagram socket: chooses an address of ours, and sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise WireError(
            f"gateway.host is {host}, and no address of this host faces the master ({master}): {error.strerror}; "
            "correct master.host, or give gateway.host an address"
        ) from error
