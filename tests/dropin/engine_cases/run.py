"""Runs every case in this interpreter, and prints what came of each as JSON:

PYTHONPATH=. python -m tests.dropin.engine_cases.run [NAME ...]
"""

from __future__ import annotations

import faulthandler
import os
import sys

from tests.dropin.casework import run_and_print

from . import EVERY
from .world import CASES, World


def main(names: list[str]) -> None:
    faulthandler.enable()
    run_and_print(CASES, World(upstream=True), names)
    sys.stdout.flush()
    os._exit(0)  # upstream's threads may end the process otherwise


if __name__ == "__main__":
    assert EVERY
    main(sys.argv[1:])
