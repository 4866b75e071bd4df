"""Prefixes that many requests have: known by the latest requests, at lengths that double."""

from __future__ import annotations

from mooncake_core.conductor.shared_prefixes import WINDOW, SharedPrefixes

KEYS = [number.to_bytes(16, "big") for number in range(1, 9)]
INSTANCES = 8


def nobody(key: bytes) -> int:
    return 0


def own(number: int) -> list[bytes]:
    return [(1 << 64 | number << 8 | index).to_bytes(16, "big") for index in range(8)]


def test_a_prefix_is_known_at_the_longest_of_the_doubling_lengths() -> None:
    shared = SharedPrefixes()
    for number in range(100):
        shared.observe([*KEYS[:6], *own(number)])
    assert shared.too_rare(INSTANCES, nobody) == 4


def test_prompts_that_begin_like_no_other_are_not_spread() -> None:
    shared = SharedPrefixes()
    for number in range(100):
        shared.observe(own(number))
    assert shared.too_rare(INSTANCES, nobody) == 0


def test_what_the_latest_requests_have_no_more_is_forgotten() -> None:
    shared = SharedPrefixes()
    for _ in range(WINDOW):
        shared.observe(KEYS)
    for number in range(WINDOW - 100):
        shared.observe(own(number))
    shared.observe(KEYS)
    assert shared.too_rare(INSTANCES, nobody) == 0  # a fifth of the latest: fewer than two of eight
    shared.observe(KEYS[:1])
    assert shared.too_rare(100, nobody) == 1


def test_enough_holders_are_enough() -> None:
    shared = SharedPrefixes()
    for _ in range(100):
        shared.observe(KEYS)
    assert shared.too_rare(INSTANCES, lambda key: INSTANCES if key == KEYS[0] else 0) == 8
    assert shared.too_rare(INSTANCES, lambda key: INSTANCES) == 0


def test_a_prompt_without_whole_blocks_has_no_prefix() -> None:
    shared = SharedPrefixes()
    for _ in range(20):
        shared.observe([])
    assert shared.too_rare(INSTANCES, nobody) == 0
