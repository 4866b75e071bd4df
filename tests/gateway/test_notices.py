"""What is said in the background, also while everything closes."""

from __future__ import annotations

import time

from mooncake_core.gateway.notices import CLOSE_S, Notices
from mooncake_core.wire.client import Clients
from mooncake_core.wire.messages.serving import Release


async def test_closing_waits_shortly_and_nothing_is_said_afterwards() -> None:
    clients = Clients("gateway")
    notices = Notices()
    notices.send(clients.get("tcp://10.255.255.1:1"), Release(request_id="r"))
    started = time.monotonic()
    await notices.close()
    assert time.monotonic() - started < CLOSE_S + 3
    await clients.close()
    notices.send(clients.get("tcp://127.0.0.1:1"), Release(request_id="r"))
    await notices.close()
