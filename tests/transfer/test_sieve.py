"""Which connection goes to make room. Pure."""

from __future__ import annotations

from mooncake_core.transfer.sieve import Sieve


def _sieve(keys: str) -> Sieve[str]:
    sieve: Sieve[str] = Sieve()
    for key in keys:
        sieve.add(key)
    return sieve


def test_who_was_not_used_goes_the_oldest_first() -> None:
    sieve = _sieve("abcd")
    for key in "ac":
        sieve.touch(key)
    assert [sieve.evict(lambda _: True) for _ in range(3)] == ["b", "d", "a"]
    assert len(sieve) == 1


def test_who_may_not_go_stays() -> None:
    sieve = _sieve("abc")
    sieve.touch("c")
    assert sieve.evict(lambda key: key == "c") == "c"
    assert sieve.evict(lambda _: False) is None
    sieve.remove("a")
    assert sieve.evict(lambda _: True) == "b"
    assert sieve.evict(lambda _: True) is None
