"""Who is a member: pure, so time is a number."""

from __future__ import annotations

import msgspec
import pytest

from mooncake_core.errors import MemberUnknown, ProtocolError
from mooncake_core.wire.membership import MemberDraining, MemberJoined, MemberLeft, MemberReported, Membership
from mooncake_core.wire.messages import decode, encode
from mooncake_core.wire.messages.membership import Heartbeat, InstanceLoad, Join, Leave


def join(name: str = "a", incarnation: int = 1) -> Join:
    return Join(name=name, role="store", host_id="h", incarnation=incarnation, control_address="", pid=1)


def beat(name: str = "a", incarnation: int = 1, load: InstanceLoad | None = None) -> Heartbeat:
    return Heartbeat(name=name, incarnation=incarnation, term=1, load=load)


def test_joining_twice_is_joining_once() -> None:
    membership = Membership(5)
    assert membership.join(join(), 0) == [MemberJoined(join())]
    assert membership.join(join(), 1) == []


def test_a_new_incarnation_replaces_the_old_one() -> None:
    membership = Membership(5)
    membership.join(join(), 0)
    assert membership.join(join(incarnation=2), 1) == [
        MemberLeft(join(), "was started anew"),
        MemberJoined(join(incarnation=2)),
    ]
    with pytest.raises(MemberUnknown, match="join again"):
        membership.heartbeat(beat(incarnation=1), 2)
    assert membership.leave(Leave(name="a", incarnation=1)) == []


def test_an_instance_that_joins_in_another_role_has_left_before() -> None:
    membership = Membership(5)
    membership.join(join(), 0)
    changed = msgspec.structs.replace(join(), role="decode")
    assert membership.join(changed, 1) == [MemberLeft(join(), "is decode now"), MemberJoined(changed)]
    assert membership.join(changed, 2) == []


def test_silence_ends_a_membership_and_heartbeats_prolong_it() -> None:
    membership = Membership(5)
    membership.join(join("a"), 0)
    membership.join(join("b"), 0)
    load = InstanceLoad(running_requests=3)
    assert membership.heartbeat(beat("b", load=load), 4) == [MemberReported("b", load)]
    assert membership.next_deadline() == 5
    assert membership.tick(5) == [MemberLeft(join("a"), "was silent for 5s", silent=True)]
    assert membership.next_deadline() == 9
    assert membership.leave(Leave(name="b", incarnation=1)) == [MemberLeft(join("b"), "left")]
    assert membership.next_deadline() is None


def test_a_newer_peers_extra_fields_are_ignored_and_missing_ones_named() -> None:
    import msgspec

    known = msgspec.msgpack.decode(encode(beat()))
    assert decode(msgspec.msgpack.encode({**known, "invented_later": 1})) == beat()
    del known["name"]
    with pytest.raises(ProtocolError, match="missing required field `name`"):
        decode(msgspec.msgpack.encode(known))
    with pytest.raises(ProtocolError):
        decode(b"\xff\x00garbage")


def test_that_a_member_drains_is_told_once() -> None:
    membership = Membership(5)
    membership.join(join(), 0)
    draining = Heartbeat(name="a", incarnation=1, term=1, draining=True)
    assert membership.heartbeat(draining, 1) == [MemberDraining(join())]
    assert membership.heartbeat(draining, 2) == []
    membership.join(join(), 3)
    assert membership.records["a"].draining
    assert membership.join(join(incarnation=2), 4)
    assert not membership.records["a"].draining
