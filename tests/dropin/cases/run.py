"""Runs every case in this interpreter against a master, and prints what came of each as JSON:

PYTHONPATH=. python -m tests.dropin.cases.run MASTER [NAME ...]
"""

from __future__ import annotations

import faulthandler
import json
import sys
import traceback

from . import EVERY
from .world import CASES, World


def main(master: str, names: list[str]) -> None:
    faulthandler.enable()
    world = World(master, upstream=True)
    for name in names or CASES:
        found = CASES[name]
        print(json.dumps({"begins": name}), flush=True)
        try:
            found.run(world, *found.row)
        except Exception:
            outcome = traceback.format_exc(limit=-2)
        else:
            outcome = ""
        world.empty()
        print(json.dumps({"name": name, "failure": outcome}), flush=True)
    world.close()


if __name__ == "__main__":
    assert EVERY
    main(sys.argv[1], sys.argv[2:])
