"""A node's tiers as one: each object is written to all of them, and read from the first that has it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from mooncake_core import registry
from mooncake_core.config.schema import TierConfig
from mooncake_core.store.tiers.contract import Listing, NewTierObject, Tier, TierKey, TierSettings, Written
from mooncake_core.store.tiers.folder import FolderBusy
from mooncake_core.wire.messages.tiering import TierFill

MOST_FOLDERS: Final = 256
"""Of nodes that take the first free one, at one place."""

_log = logging.getLogger(__name__)


class TierStack:
    """Its methods block, and may be called from threads as those of a tier."""

    def __init__(self, tiers: Sequence[Tier], *, write_through: bool = False, sync_interval_s: float = 1.0) -> None:
        self._tiers = list(tiers)
        self.write_through = write_through
        self.sync_interval_s = sync_interval_s

    @property
    def kinds(self) -> list[str]:
        return [tier.name for tier in self._tiers]

    def write(self, objects: Sequence[NewTierObject]) -> Written:
        """Stored where at least one tier holds it; dropped where none does any more."""
        stored = [False] * len(objects)
        dropped: dict[TierKey, None] = {}
        for tier in self._tiers:
            written = tier.write(objects)
            stored = [before or now for before, now in zip(stored, written.stored, strict=True)]
            dropped |= dict.fromkeys(written.dropped)
        return Written(stored, [name for name in dropped if not any(tier.holds(name) for tier in self._tiers)])

    def read(self, wanted: TierKey, target: memoryview) -> str:
        """The kind of the tier it came from; empty where none has it."""
        for tier in self._tiers:
            if tier.read(wanted, target):
                return tier.name
        return ""

    def remove(self, names: Sequence[TierKey]) -> None:
        for tier in self._tiers:
            tier.remove(names)

    def list_objects(self, cursor: str, limit: int) -> Listing:
        """As a tier's; what is in several tiers may come several times."""
        number, _, inner = cursor.partition(":")
        index = int(number or 0)
        if index >= len(self._tiers):
            return Listing([], None)
        objects, following = self._tiers[index].list_objects(inner, limit)
        if following is not None:
            return Listing(objects, f"{index}:{following}")
        return Listing(objects, f"{index + 1}:" if index + 1 < len(self._tiers) else None)

    def fills(self) -> list[TierFill]:
        """How full each is."""
        usages = [(tier.name, tier.usage()) for tier in self._tiers]
        return [
            TierFill(
                kind=kind,
                capacity_bytes=usage.capacity_bytes,
                used_bytes=usage.used_bytes,
                num_objects=usage.num_objects,
                trouble=usage.trouble,
            )
            for kind, usage in usages
        ]

    def sync(self) -> None:
        for tier in self._tiers:
            tier.sync()

    def close(self) -> None:
        for tier in self._tiers:
            tier.close()


def open_tiers(owner: str, sections: Sequence[TierConfig]) -> TierStack:
    """The tiers of a node. One whose disk does not work is left out, with an error in the log.

    Raises:
        ConfigError, PluginUnavailable: as a tier's.
    """
    opened: list[Tier] = []
    try:
        for section in sections:
            try:
                opened.append(_open(owner, section))
            except OSError as error:
                reason = error.strerror or error
                _log.error("%s goes on without its tier %s at %s: %s", owner, section.kind, section.path, reason)
    except BaseException:
        TierStack(opened).close()
        raise
    return TierStack(
        opened,
        write_through=any(section.write == "through" for section in sections),
        sync_interval_s=min((section.sync_interval for section in sections), default=1.0),
    )


def _open(owner: str, section: TierConfig) -> Tier:
    tier_class: type[Tier] = registry.load("tier", section.kind)
    if section.folder == "node":
        return tier_class(_settings(owner, section))
    for number in range(MOST_FOLDERS):  # a folder's lock ends with its process, so what one left behind is found again
        try:
            return tier_class(_settings(f"node-{number}", section))
        except FolderBusy:
            continue
    raise FolderBusy(f"expected one of {MOST_FOLDERS} folders at {section.path} to be free, all are in use")


def _settings(owner: str, section: TierConfig) -> TierSettings:
    return TierSettings(
        owner=owner,
        path=section.path,
        capacity_bytes=section.capacity,
        reserve_bytes=section.reserve,
        options=section.options,
    )
