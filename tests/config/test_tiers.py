"""Tiers in the YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooncake_core.config.load import load_config
from mooncake_core.errors import ConfigError

YAML = """
store:
  - tiers:
      - {kind: lmdb, path: /mnt/ssd, capacity: 200GiB, reserve: 10GiB, sync_interval: 500ms}
      - {kind: fsspec, path: "s3://bucket/x", write: through, options: {endpoint_url: "http://x"}}
"""


def test_tiers_are_read_with_their_units_and_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(YAML)
    ssd, objects = load_config(file).config.store[0].tiers
    assert (ssd.capacity, ssd.reserve, ssd.sync_interval, ssd.write) == (200 << 30, 10 << 30, 0.5, "evict")
    assert (objects.kind, objects.write, objects.options) == ("fsspec", "through", {"endpoint_url": "http://x"})
    assert (objects.capacity, objects.reserve) == (4 << 30, 1 << 30)


@pytest.mark.parametrize(
    ("tier", "problem"),
    [
        (
            "{kind: lmbd, path: /x}",
            "store.0.tiers.0.kind: expected an installed tier (fsspec, lmdb), got lmbd; did you mean lmdb",
        ),
        ("{kind: lmdb}", "store.0.tiers.0.path: expected a folder or a URL, got nothing"),
        ("{path: /x, capacity: much}", "store.0.tiers.0.capacity: expected a size like 4GiB"),
        ("{path: /x, speed: 5}", "store.0.tiers.0.speed: unknown key"),
    ],
)
def test_what_is_wrong_with_a_tier_is_said_with_its_place(tmp_path: Path, tier: str, problem: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"store: [{{tiers: [{tier}]}}]")
    with pytest.raises(ConfigError) as raised:
        load_config(file)
    assert problem in str(raised.value)
    assert "c.yaml:1:" in str(raised.value)
