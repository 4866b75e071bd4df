"""Whether the configuration's addresses exist, and its fixed ports can be had."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Final, NamedTuple

from mooncake_core.address import is_wildcard
from mooncake_core.config.processes import ports_of, processes
from mooncake_core.config.schema import ClusterConfig
from mooncake_core.doctor.contract import Finding, State, Subject, fail, ok, skip
from mooncake_core.doctor.places import is_here
from mooncake_core.roles import run_directory

NUMBER: Final = re.compile(r"\.(\d+)")
"""Of an entry in a list."""


class Listener(NamedTuple):
    """A place where a process of the cluster listens."""

    setting: str
    host: str
    port: int


def check(subject: Subject) -> Iterator[Finding]:
    if subject.config is None:
        yield skip("give -c FILE to look at the ports that it names")
        return
    running = bool(run_directory.find(subject.config.cluster))
    findings = {
        listener: _finding(listener, subject.config.cluster if running else "")
        for listener in _listeners(subject.config)
    }
    for listener, finding in findings.items():
        if listener.port or finding.state is not State.OK:
            yield finding


def _listeners(config: ClusterConfig) -> Iterator[Listener]:
    """Of the configuration, with port 0 where any free one will do."""
    if config.master.admin_port:
        yield Listener("master.admin_port", config.master.host, config.master.admin_port)
    for spec in processes(config):
        server, *others = ports_of(spec)
        for path, port in (server, *(other for other in others if other[1])):
            yield Listener(NUMBER.sub(r"[\1]", path), spec.host, port)


def _finding(listener: Listener, running: str) -> Finding:
    setting, host, port = listener
    place = f"{setting}: {host}" + (f" port {port}" if port else "")
    try:
        if not is_here(host):
            return skip(f"{place} is another machine's")
        if not port or _is_free(host, port):
            return ok(f"{place} can be listened at")
    except OSError as error:
        return fail(f"{place}: {error.strerror or error}", "expected the address or the name of a machine: correct it")
    if running:
        return ok(f"{place} is in use, presumably by cluster {running}, which runs here")
    return fail(
        f"{place} is in use by another process", f"`ss -ltnp sport = :{port}` names it; or set {setting} to another one"
    )


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what ended a minute ago is not in the way
        try:
            probe.bind(("" if is_wildcard(host) else host.strip("[]"), port))
        except OSError:
            return False
        probe.listen(1)
    return True
