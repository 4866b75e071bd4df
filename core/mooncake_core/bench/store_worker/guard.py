"""Runs a command until it ends or stdin does, so with whoever started it at the latest: `PYTHON guard.py COMMAND...`."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

PATIENCE_S = 5.0


def main() -> int:
    """Returns the command's exit code."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=end_with_stdin, args=(child,), daemon=True).start()
    return child.wait()


def end_with_stdin(child: Any) -> None:
    """Politely, and for good PATIENCE_S later."""
    sys.stdin.read()
    child.terminate()
    try:
        child.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    sys.exit(main())
