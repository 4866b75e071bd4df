"""How operations become work requests, exports memory regions, and ports of two ends rails. Pure."""

from __future__ import annotations

import ipaddress
import random

import pytest

from mooncake_core.transfer.contract import Range
from mooncake_rdma.messages import Limits, Message, Segment, messages, targets
from mooncake_rdma.paths import PortAddress, Rail, hulls, rails
from mooncake_rdma.ports import Fabric

LIMITS = Limits(segments=4, message_bytes=1000, staged_bytes=300)
REGION = "a region"


def _piece(num_bytes: int, address: int, region: str | None = REGION) -> Segment[str]:
    return Segment(memoryview(bytes(num_bytes)), address, region)


def _cut(
    pieces: list[Segment[str]], ranges: list[Range], covering: list[Range] | None = None, *, in_order: bool = False
) -> list[Message[str]]:
    covering = covering or [Range(0, 1 << 40)]
    there = targets(ranges, [part.offset for part in covering], [part.offset + part.length for part in covering])
    return messages(pieces, there, LIMITS, in_order=in_order)


def _shape(made: list[Message[str]]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Offset there, and (address, length) here."""
    return [(one.offset, [(part.address, part.view.nbytes) for part in one.segments]) for one in made]


def test_a_small_transfer_is_one_message() -> None:
    assert _shape(_cut([_piece(100, 5000)], [Range(7, 100)])) == [(7, [(5000, 100)])]


def test_a_large_one_is_cut() -> None:
    made = _cut([_piece(2100, 5000)], [Range(0, 2100)])
    assert _shape(made) == [(0, [(5000, 1000)]), (1000, [(6000, 1000)]), (2000, [(7000, 100)])]
    assert [one.num_bytes for one in made] == [1000, 1000, 100]


def test_pieces_are_gathered_as_far_as_a_queue_pair_can() -> None:
    made = _cut([_piece(10, 100 * n) for n in range(6)], [Range(0, 60)])
    assert _shape(made) == [(0, [(0, 10), (100, 10), (200, 10), (300, 10)]), (40, [(400, 10), (500, 10)])]


def test_ranges_that_touch_share_a_message_and_others_do_not() -> None:
    made = _cut([_piece(30, 0)], [Range(0, 10), Range(10, 10), Range(50, 10)])
    assert _shape(made) == [(0, [(0, 10), (10, 10)]), (50, [(20, 10)])]


def test_what_is_not_registered_goes_through_pinned_memory_in_parts() -> None:
    made = _cut([_piece(10, n, None) for n in range(50)] + [_piece(700, 9000)], [Range(0, 1200)])
    assert [(one.is_staged, one.num_bytes) for one in made] == [(True, 300), (True, 200), (False, 700)]
    assert len(made[0].segments) == 30


def test_messages_keep_to_one_key() -> None:
    made = _cut([_piece(300, 0)], [Range(50, 100), Range(400, 200)], [Range(0, 100), Range(100, 50), Range(400, 500)])
    assert [(one.offset, one.num_bytes, one.key) for one in made] == [(50, 50, 0), (100, 50, 1), (400, 200, 2)]


def test_in_order_each_range_waits_for_those_before() -> None:
    made = _cut([_piece(2300, 0)], [Range(0, 2000), Range(2000, 200), Range(9000, 100)], in_order=True)
    assert [(one.offset, one.is_barrier) for one in made] == [(0, False), (1000, False), (2000, True), (9000, True)]


@pytest.mark.parametrize("seed", range(20))
def test_every_byte_is_moved_once_and_to_its_place(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.randint(1, 700) for _ in range(draw.randint(1, 20))]
    total = sum(lengths)
    pieces, address = [], 0
    for length in lengths:
        pieces.append(_piece(length, address, draw.choice([REGION, None])))
        address += length  # so that the address tells which byte it is
    cuts = sorted(draw.sample(range(1, total), min(5, total - 1)))
    ranges = [Range(3 * start, end - start) for start, end in zip([0, *cuts], [*cuts, total], strict=True)]
    moved: dict[int, int] = {}
    for one in _cut(pieces, ranges):
        there = one.offset
        for part in one.segments:
            moved.update({there + n: part.address + n for n in range(part.view.nbytes)})
            there += part.view.nbytes
        assert there == one.offset + one.num_bytes
        assert one.num_bytes <= (LIMITS.staged_bytes if one.is_staged else LIMITS.message_bytes)
    expected, here = {}, 0
    for part in ranges:
        expected.update({part.offset + n: here + n for n in range(part.length)})
        here += part.length
    assert moved == expected


def test_hulls_close_the_smallest_gaps() -> None:
    ranges = [Range(0, 10), Range(20, 10), Range(100, 10), Range(115, 10), Range(300, 10)]
    assert hulls(ranges, 5) == ranges
    assert hulls(ranges, 3) == [Range(0, 30), Range(100, 25), Range(300, 10)]
    assert hulls(ranges, 1) == [Range(0, 310)]
    assert hulls([], 1) == []


def _port(device: str, **gids: str) -> PortAddress:
    packed = {fabric: ipaddress.IPv6Address(text).packed for fabric, text in gids.items()}
    return PortAddress(device, 1, 100.0, {fabric.replace("_", "-"): address for fabric, address in packed.items()})


def _ipv4(device: str, address: str) -> PortAddress:
    return _port(device, roce_v2_ipv4=f"::ffff:{address}")


def test_ports_of_one_subnet_are_a_rail() -> None:
    ours = [_ipv4("a", "10.0.0.1"), _ipv4("b", "10.0.1.1")]
    theirs = [_ipv4("a", "10.0.1.2"), _ipv4("b", "10.0.0.2")]
    fabric = Fabric.ROCE_V2_IPV4
    assert rails(ours, theirs) == [Rail(0, 1, fabric), Rail(1, 0, fabric)]


def test_every_port_of_the_end_that_has_more_is_used() -> None:
    ours = [_ipv4("a", "10.0.0.1")]
    theirs = [_ipv4("a", "10.0.0.2"), _ipv4("b", "10.0.1.2"), _ipv4("c", "10.0.2.2")]
    assert sorted((rail.ours, rail.theirs) for rail in rails(ours, theirs)) == [(0, 0), (0, 1), (0, 2)]
    assert sorted((rail.ours, rail.theirs) for rail in rails(theirs, ours)) == [(0, 0), (1, 0), (2, 0)]


def test_ends_meet_on_a_fabric_that_both_have() -> None:
    both = _port("a", roce_v2_ipv4="::ffff:10.0.0.1", roce_v2_ipv6="fd00::1")
    six = _port("b", roce_v2_ipv6="fd00::2")
    assert rails([both], [six]) == [Rail(0, 0, Fabric.ROCE_V2_IPV6)]
    assert rails([six], [_port("c", infiniband="fe80::5")]) == []
