"""Runs every case in this interpreter against a master, and prints what came of each as JSON:

PYTHONPATH=. python -m tests.dropin.cases.run MASTER [NAME ...]
"""

from __future__ import annotations

import faulthandler
import sys

from tests.dropin.casework import run_and_print

from . import EVERY
from .world import CASES, World


def main(master: str, names: list[str]) -> None:
    faulthandler.enable()
    run_and_print(CASES, World(master, upstream=True), names)


if __name__ == "__main__":
    assert EVERY
    main(sys.argv[1], sys.argv[2:])
