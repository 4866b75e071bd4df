"""Two hosts, their link cut, restored and narrowed while blocks move: `scripts/acceptance hosts`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance import netns

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "it can run"),
]
ROOT = Path(__file__).parents[2]
SECONDS = 16.0
OUTAGES_S = (0.5, 3.0)
QUIET_S = 2.0
"""Before each outage and after the last one, at least."""
NARROW = "200mbit"
LINK_CUT = 0
LINKS_SECONDS = 25.0
SETTLING_S = 4.0
"""Until it is known that a link fails."""
MOST_FAILOVER_S = 4.0
SHARE_AT_LEAST = 0.2
SHARE_WHILE_CUT = 0.02
WEIGHTS = [0, 2, 1]
"""Of the links."""
WEIGHED_RATE = "400mbit"
WEIGHED_SECONDS = 10.0
WEIGHED_WITHIN = 0.08
BESIDE_AT_MOST_BYTES = 100_000


@contextmanager
def process(host: netns.Host, role: str, address: str, *arguments: str) -> Generator[subprocess.Popen[str]]:
    command = [
        "ip",
        "netns",
        "exec",
        host.namespace,
        sys.executable,
        "-m",
        "tests.acceptance.host_mover",
        role,
        address,
    ]
    with subprocess.Popen(
        [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as started:
        try:
            yield started
        finally:
            assert started.stdin is not None
            started.stdin.close()
            started.wait(30)


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_no_transfer_is_lost_and_no_byte_wrong_while_the_link_fails(family: str) -> None:
    with ExitStack() as stack:
        near, far = stack.enter_context(netns.hosts(2))
        addresses = [host.address if family == "ipv4" else host.address_6 for host in (near, far)]
        target = stack.enter_context(process(far, "target", addresses[1]))
        assert target.stdout is not None
        name = target.stdout.readline().strip()
        mover = stack.enter_context(process(near, "initiator", addresses[0], name, str(SECONDS)))
        assert mover.stdout is not None
        assert "began" in json.loads(mover.stdout.readline())
        lines = stack.enter_context(ThreadPoolExecutor(1)).submit(
            list, mover.stdout
        )  # a full pipe would stop the mover
        for outage_s in OUTAGES_S:
            time.sleep(QUIET_S)
            netns.cut(1)
            time.sleep(outage_s)
            netns.restore(1)
        time.sleep(QUIET_S)
        netns.shape(1, "--rate", NARROW)
        done: list[dict[str, Any]] = [json.loads(line) for line in lines.result()]
    assert [one["error"] for one in done if one["error"]] == []
    assert all(one["right"] for one in done)
    assert {path for one in done for path in one["paths"]} == {"tcp"}  # shared memory has not hidden the network
    assert sum(one["took_s"] > min(OUTAGES_S) / 2 for one in done) >= len(OUTAGES_S), (
        "nothing was under way when the link was cut"
    )
    longest = sorted((one["took_s"] for one in done), reverse=True)[: len(OUTAGES_S)]
    print(
        f"\n{family}: {len(done)} blocks written and read back, {sum(one['bytes'] for one in done) / 1e6:.0f} MB each way, none "
        f"wrong or lost; outages of {' and '.join(f'{s:g}' for s in OUTAGES_S)} s cost the blocks under way "
        f"{' and '.join(f'{took:.2f}' for took in sorted(longest))} s; then at {NARROW}/s"
    )


def test_a_cut_link_costs_a_moment_and_nothing_is_lost_or_wrong() -> None:
    """Two hosts with two links each: the first is cut while both carry, and takes part again some time after it is restored."""
    with ExitStack() as stack:
        near, far = stack.enter_context(netns.hosts(2, links=2))
        addresses = [",".join((host.address, *host.further)) for host in (near, far)]
        target = stack.enter_context(process(far, "target", addresses[1]))
        assert target.stdout is not None
        name = target.stdout.readline().strip()
        mover = stack.enter_context(process(near, "initiator", addresses[0], name, str(LINKS_SECONDS)))
        assert mover.stdout is not None
        assert "began" in json.loads(mover.stdout.readline())
        lines = stack.enter_context(ThreadPoolExecutor(1)).submit(list, mover.stdout)
        both = _share(near)
        netns.cut(1, LINK_CUT)
        time.sleep(SETTLING_S)
        alone = _share(near)
        netns.restore(1, LINK_CUT)
        restored = time.monotonic()
        while (again := _share(near)) < SHARE_AT_LEAST and not lines.done():
            pass
        back_s = time.monotonic() - restored
        done: list[dict[str, Any]] = [json.loads(line) for line in lines.result()]
    print(
        f"\ntwo links: {len(done)} blocks written and read back, {sum(one['bytes'] for one in done) / 1e6:.0f} MB each way; the "
        f"link that was cut carried {both:.0%}, then {alone:.0%}, and {again:.0%} at most {back_s:.1f} s after it was "
        f"restored; the longest block took {max(one['took_s'] for one in done):.2f} s"
    )
    assert [one["error"] for one in done if one["error"]] == []
    assert all(one["right"] for one in done)
    assert max(one["took_s"] for one in done) <= MOST_FAILOVER_S
    assert alone < SHARE_WHILE_CUT
    assert min(both, again) >= SHARE_AT_LEAST


def test_a_banned_network_carries_nothing_and_the_others_by_their_weights() -> None:
    with ExitStack() as stack:
        near, far = stack.enter_context(netns.hosts(2, links=3, rate=WEIGHED_RATE))
        peers = (far.address, *far.further)
        weights = {str(ip_interface(f"{peer}/24").network): weight for peer, weight in zip(peers, WEIGHTS, strict=True)}
        target = stack.enter_context(process(far, "target", ",".join(peers)))
        assert target.stdout is not None
        name = target.stdout.readline().strip()
        before = near.carried_bytes(WEIGHTS.index(0))
        addresses = ",".join((near.address, *near.further))
        command = (addresses, name, str(WEIGHED_SECONDS), json.dumps(weights))
        mover = stack.enter_context(process(near, "initiator", *command))
        assert mover.stdout is not None
        _, *lines = mover.stdout
        done: list[dict[str, Any]] = [json.loads(line) for line in lines]
        beside = near.carried_bytes(WEIGHTS.index(0)) - before
    assert [one["error"] for one in done if one["error"]] == []
    assert all(one["right"] for one in done)
    carried = Counter[str]()
    for one in done:
        carried.update(dict.fromkeys(peers, 0))
        for peer, num_bytes in one["carried"]:
            carried[peer] += num_bytes
    moved = sum(carried.values())
    assert moved == sum(2 * one["bytes"] for one in done)
    shares = [carried[peer] / moved for peer in peers]
    print(
        f"\nweights {WEIGHTS}: {len(done)} blocks, {moved / 1e6:.0f} MB, by link "
        f"{', '.join(f'{share:.0%}' for share in shares)}; {beside} bytes went by the banned one, which the control plane uses"
    )
    assert shares[WEIGHTS.index(0)] == 0
    assert beside < BESIDE_AT_MOST_BYTES
    assert shares[WEIGHTS.index(2)] == pytest.approx(2 / 3, abs=WEIGHED_WITHIN)


def _share(host: netns.Host) -> float:
    """Of what leaves it and arrives for a while, by the link that is cut."""
    before = [host.carried_bytes(link) for link in range(2)]
    time.sleep(QUIET_S)
    moved = [host.carried_bytes(link) - carried for link, carried in enumerate(before)]
    return moved[LINK_CUT] / max(1, sum(moved))


@pytest.mark.timeout(1200)
@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86_64")
def test_several_connections_carry_more_where_the_link_delays_and_loses(tmp_path: Path) -> None:
    """In a virtual machine: few kernels have sch_netem at hand."""
    limits = ["--delay", "2ms", "--loss", "0.1%"]
    command = [str(ROOT / "scripts" / "rdma-guest"), sys.executable, "-m", "tests.acceptance.lossy_guest", *limits]
    environ = {**os.environ, "RDMA_GUEST_OUT": str(tmp_path), "RDMA_GUEST_TIMEOUT": "900"}
    subprocess.run(command, env=environ, cwd=ROOT, check=True)
    rows = json.loads((tmp_path / "result.json").read_text())
    rates = {(row["kind"], row["connections"]): row["mb_per_s"] for row in rows}
    for kind in ("read", "write"):
        found = {count: rate for (other, count), rate in rates.items() if other == kind}
        listed = ", ".join(f"{count}: {rate:.1f} MB/s" for count, rate in found.items())
        print(f"\n{kind} over a link with {' '.join(limits)} each way, by connections: {listed}")
        assert max(found.values()) > found[1]
