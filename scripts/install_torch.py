"""Installs torch into the environment that runs this: a CPU build where one is to be had and no GPU is there.

Order: torch that is installed already; $TORCH_INDEX; a CPU build (version ...+cpu) of the configured index; whatever the
index offers, with the size announced first where that is a CUDA build.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.request

OLDEST = "2.6"


def main() -> int:
    if _installed():
        return 0
    index = os.environ.get("TORCH_INDEX")
    if index:
        return _install(f"torch>={OLDEST}", "--index-url", index)
    has_gpu = shutil.which("nvidia-smi") is not None
    cpu_version = None if has_gpu else _newest_cpu_version()
    if cpu_version:
        return _install(f"torch=={cpu_version}")
    urls = _downloads()
    if not urls:
        sys.stderr.write(
            "error: the configured package index offers no torch, or cannot be reached; is there a network?\n"
        )
        return 1
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        _announce_size(urls)
    return _install(f"torch>={OLDEST}")


def _installed() -> bool:
    return subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def _install(*arguments: str) -> int:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *arguments]
    return subprocess.run(command).returncode


def _newest_cpu_version() -> str | None:
    """pip lists versions newest first; the public version and its +cpu build stand side by side."""
    return next(iter(re.findall(r"\b(\d+\.\d+\.\d+\+cpu)\b", _pip("index", "versions", "torch").stdout)), None)


def _downloads() -> list[str]:
    """What installing torch would fetch, torch's own requirements included."""
    report = _pip("install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-", f"torch>={OLDEST}")
    try:
        return [item["download_info"]["url"] for item in json.loads(report.stdout)["install"]]
    except (json.JSONDecodeError, KeyError):
        return []


def _announce_size(urls: list[str]) -> None:
    sizes = [_size_bytes(url) for url in urls]
    total = f"{sum(sizes) / 1e9:.1f} GB" if all(sizes) else "several GB"
    sys.stderr.write(
        f"the configured index has only a CUDA build of torch: {total} to download in {len(urls)} packages. "
        "Set TORCH_INDEX to an index with CPU builds to take one of those instead.\n"
    )


def _size_bytes(url: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10) as answer:
            return int(answer.headers.get("Content-Length", 0))
    except (OSError, ValueError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
