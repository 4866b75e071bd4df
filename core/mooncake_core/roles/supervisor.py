"""Starts the processes of one host, restarts what dies, and ends everything together.

The supervisor does no serving and imports neither zmq nor torch: it waits for its children and passes on their logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

import msgspec

from mooncake_core.address import HostPort, parse_host_port
from mooncake_core.config.processes import ProcessSpec, processes
from mooncake_core.config.schema import ClusterConfig
from mooncake_core.config.tls import absolute
from mooncake_core.roles.parent import Announcement, Boot
from mooncake_core.roles.restart import RestartPolicy
from mooncake_core.roles.run_directory import ProcessState, StartState, StateFile

DRAIN_S: Final = 1.5
"""How long answers under way may go on where all stop together, so that there is nowhere for them to move."""
HURRY_S: Final = 0.5
"""How long each group may take to end once it is told to hurry."""
MASTER_S: Final = 10.0
"""How long another process's failure to start waits to hear whether the master of this start can."""
AFTER_DRAIN_S: Final = 2.5
"""How long children may take in all, once they were given time to drain, before they are killed: where all stop together
it takes under five seconds."""
STOP_ORDER: Final = (("gateway",), ("prefill", "decode"), ("store", "master"))
"""Who is needed by others ends after them."""
INTERRUPTED: Final = 128 + signal.SIGINT
"""Exit code of a start that Ctrl-C ended before all of it was ready."""
LOG_LINE_LIMIT: Final = 1 << 20


class Child:
    """One process, through all its restarts, with the members that run in it."""

    def __init__(self, name: str, specs: Sequence[ProcessSpec], log: Callable[[str, str], None]) -> None:
        self.name = name
        self.role = specs[0].role
        self._members = {spec.name for spec in specs}
        self._announced: set[str] = set()
        self.address = ""
        self.admin_url = ""
        self.metrics_urls: dict[str, str] = {}
        """Of its members that have a port for it."""
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        """Set while no process of it runs."""
        self.ended.set()
        self.was_ready = False
        self.process: asyncio.subprocess.Process | None = None
        self._log = log

    async def run_once(self, boot: Boot) -> int:
        """Starts the process and waits for its end; returns the exit code (negative: killed by that signal)."""
        self.process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mooncake_core.roles.process", self.name),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the supervisor only, which ends the others in order
            limit=LOG_LINE_LIMIT,
        )
        self.ended.clear()
        assert process.stdin is not None  # all three were asked for above
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(msgspec.json.encode(boot) + b"\n")
        await asyncio.gather(self._announcements(process.stdout), self._logs(process.stderr))
        self.ready.clear()
        self._announced.clear()
        code = await process.wait()
        self.ended.set()
        return code

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal if the process lives."""
        if number == signal.SIGINT and not self.ready.is_set():
            number = signal.SIGTERM  # before it listens, an interrupt would print where it was importing
        if self.process and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def _announcements(self, stdout: asyncio.StreamReader) -> None:
        async for line in _lines(stdout):
            try:
                announcement = msgspec.json.decode(line, type=Announcement)
                self.address = announcement.address
                self.admin_url = announcement.admin_url
                if announcement.metrics_url:
                    self.metrics_urls[announcement.name] = announcement.metrics_url
                self._announced.add(announcement.name)
                if self._announced == self._members:
                    self.was_ready = True
                    self.ready.set()
            except msgspec.MsgspecError:
                self._log(self.name, line.decode(errors="replace").rstrip())

    async def _logs(self, stderr: asyncio.StreamReader) -> None:
        async for line in _lines(stderr):
            self._log(self.name, line.decode(errors="replace").rstrip())


class Supervisor:
    """Runs a set of processes until told to stop.

    A process that fails before it was ever ready ends the whole start with its exit code: the reason is in the
    configuration or the machine, and a restart would only repeat it. Later deaths are restarted with back-off.
    """

    def __init__(
        self,
        config: ClusterConfig,
        specs: Sequence[ProcessSpec],
        *,
        state_file: StateFile,
        selection: str,
        config_path: str,
        log: Callable[[str, str], None],
        on_ready: Callable[[StartState], None],
    ) -> None:
        self._config = config
        whole = {spec.name for spec in specs} == {spec.name for spec in processes(config)}
        self._drain_s = min(config.drain_timeout, DRAIN_S) if whole else config.drain_timeout
        names = dict.fromkeys(spec.process for spec in specs)
        self._children = [
            Child(name, [spec for spec in specs if spec.process == name], self._pass_on) for name in names
        ]
        self._state_file = state_file
        self._selection = selection
        self._config_path = config_path
        self._log = log
        self._on_ready = on_ready
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._kill = asyncio.Event()
        self._exit_code = 0
        self._start_errors: dict[str, str] = {}
        """Error → the process that said it."""
        self._said_by: dict[str, str] = {}
        """Process whose error is not shown → the one that said the same before."""
        self._was_ready = False

    async def run(self) -> int:
        """Starts everything, serves until SIGINT or SIGTERM, ends everything; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._told_to_stop, number)
        self._write_state(ready=False)
        keepers = [asyncio.create_task(self._keep(child)) for child in self._children]
        announcer = asyncio.create_task(self._announce_ready())
        try:
            await self._stop.wait()
        finally:
            announcer.cancel()
            await self._end(keepers)
            self._state_file.close()
        return self._exit_code

    def _told_to_stop(self, number: signal.Signals) -> None:
        """The first signal stops in good order, a second one ends everything at once."""
        if self._stop.is_set():
            self._hurry.set()
            self._kill.set()
        elif number == signal.SIGINT and not self._was_ready:
            self._exit_code = INTERRUPTED
        self._stop.set()

    def _pass_on(self, name: str, line: str) -> None:
        """Logs a child's line. A start that fails in several processes for one reason says it once."""
        if not self._child(name).was_ready and line.startswith("error: "):
            if line in self._start_errors:
                self._said_by[name] = self._start_errors[line]
                return
            self._start_errors[line] = name
        self._log(name, line)

    def _child(self, name: str) -> Child:
        return next(child for child in self._children if child.name == name)

    async def _keep(self, child: Child) -> None:
        """Starts one process again and again until the end."""
        policy = RestartPolicy()
        await self._wait_for_master(child)
        while not self._stop.is_set():
            started = time.monotonic()
            watch = asyncio.create_task(self._note_ready(child))
            code = await child.run_once(self._boot(child))
            watch.cancel()
            if self._stop.is_set():
                return
            if not child.was_ready and code > 0:
                await self._hear_master(child)
                if self._stop.is_set():
                    return
                others = "; ending the others" if len(self._children) > 1 else ""
                blamed = self._said_by.get(child.name, child.name)  # that of which the reason is shown
                self._log(blamed, f"could not start (exit code {code}){others}")
                self._exit_code = code
                self._stop.set()
                self._hurry.set()  # nobody is served yet, so nothing needs to drain
                return
            delay = policy.delay_after(time.monotonic() - started)
            self._log(child.name, f"died ({_describe(code)}); starting it again in {delay:.1f}s")
            await _sleep_or(self._stop, delay)

    async def _note_ready(self, child: Child) -> None:
        await child.ready.wait()
        self._write_state(ready=all(other.ready.is_set() for other in self._children))

    async def _wait_for_master(self, child: Child) -> None:
        """The others are started once the master's address is known; with a fixed port it is known at once."""
        master = self._child_of("master")
        if master and master is not child and not self._config.master.port:
            await _first_of(master.ready.wait(), self._stop.wait())

    async def _hear_master(self, child: Child) -> None:
        """Until it is known whether the master can start: where it cannot, that is what ends the start, whoever ends first.
        Another program at its port, say, also turns the members away."""
        master = self._child_of("master")
        if master and master is not child and not master.was_ready:
            await _first_of(master.ready.wait(), self._stop.wait(), timeout_s=MASTER_S)

    async def _announce_ready(self) -> None:
        await asyncio.gather(*(child.ready.wait() for child in self._children))
        self._was_ready = True
        self._on_ready(self._write_state(ready=True))

    async def _end(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        """Ends the groups one after another; what is left after AFTER_DRAIN_S, or at a second signal, is killed."""
        patience = asyncio.get_running_loop().call_later(self._drain_s, self._hurry.set)
        longest_s = self._drain_s + AFTER_DRAIN_S
        kill_at = time.monotonic() + longest_s
        await _first_of(self._end_groups(), self._kill.wait(), timeout_s=longest_s)
        patience.cancel()
        patience_s = HURRY_S if self._kill.is_set() else max(HURRY_S, kill_at - time.monotonic())
        self._signal(self._children, signal.SIGINT)
        _, pending = await asyncio.wait(keepers, timeout=patience_s)
        if pending:
            self._kill_late()
            _, stuck = await asyncio.wait(pending, timeout=HURRY_S)
            for task in stuck:
                task.cancel()

    async def _end_groups(self) -> None:
        for roles in STOP_ORDER:
            group = [child for child in self._children if child.role in roles]
            self._signal(group, signal.SIGTERM)
            await _first_of(_ended(group), self._hurry.wait())
            self._signal(group, signal.SIGINT)
            await _first_of(_ended(group), timeout_s=HURRY_S)

    def _signal(self, children: Sequence[Child], number: signal.Signals) -> None:
        for child in children:
            child.signal(number)

    def _kill_late(self) -> None:
        for child in self._children:
            if child.process and child.process.returncode is None:
                if child.was_ready:  # a process that is still loading cannot listen, and nobody waits for it
                    self._log(child.name, "did not end in time: killed")
                child.signal(signal.SIGKILL)

    def _boot(self, child: Child) -> Boot:
        return Boot(
            config=self._pinned_config(),
            process=child.name,
            master_address=self._master_address(),
            log_level=os.environ.get("MOONCAKE_LOG_LEVEL", "info"),
            cluster=self._config.cluster,
        )

    def _pinned_config(self) -> ClusterConfig:
        """The configuration with ports that were once published: a restarted master or gateway keeps its address."""
        config = self._config
        if port := _port_of(master := self._child_of("master")):
            config = msgspec.structs.replace(config, master=msgspec.structs.replace(config.master, port=port))
        if master is not None and master.admin_url:
            admin_port = parse_host_port(master.admin_url.rpartition("/")[2]).port
            config = msgspec.structs.replace(
                config, master=msgspec.structs.replace(config.master, admin_port=admin_port)
            )
        if port := _port_of(self._child_of("gateway")):
            config = msgspec.structs.replace(config, gateway=msgspec.structs.replace(config.gateway, port=port))
        return config

    def _master_address(self) -> str:
        master = self._child_of("master")
        if master and master.address:
            return master.address
        return HostPort(self._config.master.host, self._config.master.port).url

    def _child_of(self, role: str) -> Child | None:
        return next((child for child in self._children if child.role == role), None)

    def _write_state(self, *, ready: bool) -> StartState:
        gateway, master = self._child_of("gateway"), self._child_of("master")
        tls = self._config.transfer.tls
        state = StartState(
            cluster=self._config.cluster,
            selection=self._selection,
            pid=os.getpid(),
            config=self._config_path,
            master_address=self._master_address(),
            gateway_url=gateway.address if gateway else "",
            admin_url=master.admin_url if master else "",
            key_file=self._config.auth.key_file if self._config.auth else "",
            tls=absolute(tls) if tls else None,
            weights=self._config.transfer.weights,
            processes=[
                ProcessState(
                    name=child.name,
                    role=child.role,
                    pid=child.process.pid if child.process else 0,
                    ready=child.ready.is_set(),
                    metrics_urls=dict(child.metrics_urls),
                )
                for child in self._children
            ],
            ready=ready,
            drain_s=self._drain_s,
        )
        self._state_file.write(state)
        return state


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a stream; one that exceeds the limit comes in parts."""
    while True:
        try:
            line = await stream.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                yield error.partial
            return
        except asyncio.LimitOverrunError as error:
            line = await stream.readexactly(error.consumed)
        yield line


async def _ended(children: Sequence[Child]) -> None:
    for child in children:
        await child.ended.wait()


async def _first_of(*awaitables: Awaitable[object], timeout_s: float | None = None) -> None:
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _sleep_or(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


def _port_of(child: Child | None) -> int:
    if child is None or not child.address:
        return 0
    return parse_host_port(child.address.rpartition("/")[2]).port


def _describe(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
