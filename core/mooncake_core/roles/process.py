"""`python -m mooncake_core.roles.process NAME`: one role process, started by a supervisor (see parent.py).

SIGTERM: take no new work, finish what runs within drain_timeout, end. SIGINT: end at once.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Final

from mooncake_core.config.processes import processes
from mooncake_core.errors import (
    AuthenticationFailed,
    ConfigError,
    MemberExists,
    ModelError,
    MooncakeError,
    PluginUnavailable,
    PluginUnknown,
    VersionMismatch,
)
from mooncake_core.roles.context import Orders, RoleContext
from mooncake_core.roles.parent import Boot, end_with_parent, read_boot
from mooncake_core.telemetry import logs
from mooncake_core.telemetry.loop_pauses import LoopPauses

EXIT_FAILED: Final = 1
EXIT_CONFIGURATION: Final = 2
_CONFIGURATION_ERRORS: Final = (
    AuthenticationFailed,
    ConfigError,
    MemberExists,
    ModelError,
    PluginUnavailable,
    PluginUnknown,
    VersionMismatch,
)

_MODULES: Final = {"prefill": "inference_instance", "decode": "inference_instance"}

_log = logging.getLogger(__name__)


def main() -> int:
    """Runs the role until told to stop; returns the exit code."""
    boot = read_boot()
    end_with_parent()
    logs.configure(boot.log_level)
    pauses = LoopPauses()
    busy_poll_s = boot.config.transfer.busy_poll
    try:
        with asyncio.Runner(loop_factory=lambda: pauses.new_loop(busy_poll_s)) as runner:
            runner.run(_run(boot, pauses))
    except _CONFIGURATION_ERRORS as error:
        return _fail(error, EXIT_CONFIGURATION)
    except MooncakeError as error:
        return _fail(error, EXIT_FAILED)
    except Exception:
        _log.exception("unexpected failure")
        return EXIT_FAILED
    return 0


async def _run(boot: Boot, pauses: LoopPauses) -> None:
    """Runs all members of this process; the first failure ends them all."""
    orders = Orders()
    specs = [spec for spec in processes(boot.config) if spec.process == boot.process]
    contexts = [RoleContext(boot, spec, orders, pauses, num_members=len(specs)) for spec in specs]
    loop = asyncio.get_running_loop()
    for number, obey in ((signal.SIGTERM, orders.stop.set), (signal.SIGINT, orders.end_now)):
        loop.add_signal_handler(number, _obey, obey, contexts)
    members = [asyncio.create_task(_run_member(context)) for context in contexts]
    await asyncio.wait(members, return_when=asyncio.FIRST_EXCEPTION)
    orders.end_now()
    outcomes = await asyncio.gather(*members, return_exceptions=True)
    for number in (signal.SIGTERM, signal.SIGINT):  # it ends: an order that comes now must not break that off
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


def _obey(order: Callable[[], None], contexts: Sequence[RoleContext]) -> None:
    """A process in which nobody is ready yet has nothing to finish; a thread that loads a model cannot be stopped."""
    if not any(context.ready for context in contexts):
        os._exit(0)
    order()


async def _run_member(context: RoleContext) -> None:
    name = _MODULES.get(context.spec.role, context.spec.role)
    role = importlib.import_module(f"mooncake_core.roles.{name}")
    await role.run(context)


def _fail(error: MooncakeError, code: int) -> int:
    sys.stderr.write(f"error: {error}\n")
    return code


if __name__ == "__main__":
    code = main()
    # Threads that wait for work in foreign libraries must not keep a finished process alive.
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
