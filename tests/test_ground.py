"""Units, addresses, errors, plugins: the ground everything stands on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_core import errors, registry
from mooncake_core.address import HostPort, is_loopback, parse_host_port
from mooncake_core.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4GiB", 4 << 30),
        ("1.5 KiB", 1536),
        ("64k", 64_000),
        ("512MB", 512 * 10**6),
        (7, 7),
        ("2 tib", 2 << 40),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "4 potatoes", "-1", -1, "1.5", "1e3", True, None, "4GiB4"])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="expected a"):
        parse_size(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("100ms", 0.1), ("5m", 300), ("2h", 7200), ("1.5", 1.5), (3, 3), ("20us", 2e-5)]
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-1s", -1, float("inf"), float("nan"), "5 parsecs", None, False])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)  # type: ignore[arg-type]


@given(st.integers(0, 1 << 50))
def test_formatted_sizes_are_near(size: int) -> None:
    assert parse_size(int(size)) == size
    number = float(format_size(size).rstrip("KMGTiB"))
    assert number >= 0


@given(st.floats(0, 1e6))
def test_formatted_durations_read_back(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=0.01, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("h:1", ("h", 1)), ("tcp://10.0.0.1:0", ("10.0.0.1", 0)), ("[::1]:80", ("::1", 80))],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    parsed = parse_host_port(text)
    assert parsed == expected
    assert parse_host_port(parsed.url) == parsed


@pytest.mark.parametrize("text", ["", "h", ":1", "h:", "h:x", "h:70000", "::1:80", "[::1:80"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_host_port(text)


def test_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "10.0.0.1", "example.org", "::"]))
    assert str(HostPort("::1", 5)) == "[::1]:5"


def _all_errors(root: type[errors.MooncakeError]) -> list[type[errors.MooncakeError]]:
    return [root, *(found for child in root.__subclasses__() for found in _all_errors(child))]


def test_every_error_has_a_code_of_its_own_and_crosses_the_wire() -> None:
    kinds = [kind for kind in _all_errors(errors.MooncakeError) if kind.__module__ == errors.__name__]
    assert len({kind.code for kind in kinds}) == len(kinds)
    for kind in kinds:
        back = errors.from_wire(*errors.to_wire(kind("what", problems=["a"])))
        assert (type(back), back.message, back.detail) == (kind, "what", {"problems": ["a"]})


def test_errors_of_strangers_and_of_newer_peers_are_plain() -> None:
    assert errors.to_wire(KeyError("x")) == ("error", "KeyError: 'x'", {})
    assert type(errors.from_wire("invented_later", "m", {})) is errors.MooncakeError


def test_plugins_are_found_by_name_and_missing_ones_named() -> None:
    assert [entry.name for entry in registry.installed("transport")] == ["rdma", "shm", "tcp"]
    with pytest.raises(
        errors.PluginUnknown, match=r"no policy called 'kvcache-centrik' .* did you mean kvcache-centric\?"
    ):
        registry.load("policy", "kvcache-centrik")


def test_a_plugin_that_cannot_be_imported_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    broken = EntryPoint("broken", "no_such_module_anywhere:X", "mooncake.transports")
    monkeypatch.setattr(registry, "installed", lambda kind: [broken])
    with pytest.raises(errors.PluginUnavailable, match="transport broken is not available: No module named"):
        registry.load("transport", "broken")
