"""What scripts/try-vllm shows, once everything is installed: `try_vllm.py PYTHON_WITH_VLLM`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mooncake_core.testing.vllm import Answer, VllmEngine, await_objects, prompts

CONFIG = Path(__file__).parent.parent / "configs" / "vllm-store.yaml"
MOONCAKE = Path(sys.executable).parent / "mooncake"


def main() -> int:
    python = sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="try-vllm-") as name:
        folder = Path(name)
        environ = {**os.environ, "XDG_RUNTIME_DIR": name}
        start = [
            str(MOONCAKE),
            "start",
            "--role",
            "master",
            "-c",
            str(CONFIG),
            "--set",
            "master.port=0",
            "--set",
            "master.admin_port=0",
        ]
        print("== mooncake start --role master -c configs/vllm-store.yaml")
        done = subprocess.run(
            [*start, "--detach", "--json"], env=environ, stdout=subprocess.PIPE, text=True, check=True
        )
        master = json.loads(done.stdout)["master_address"].removeprefix("tcp://")
        try:
            return show(python, folder, master)
        finally:
            subprocess.run([str(MOONCAKE), "stop"], env=environ, check=False)


def show(python: str, folder: Path, master: str) -> int:
    """Runs three engines; 0 when the pool made no difference but to what was computed."""
    asked = prompts(3)
    print("== vLLM alone, without a pool")
    with VllmEngine(python, folder, "alone") as engine:
        expected = table(engine.generate(asked))
    print("== vLLM A, which fills the pool")
    with VllmEngine(python, folder, "a", master=master) as a:
        filled = table(a.generate(asked))
        await_objects(master, sum(answer.num_blocks for answer in filled))
        print("== vLLM B, fresh: its prefix comes from the pool")
        with VllmEngine(python, folder, "b", master=master) as b:
            taken = table(b.generate(asked))
    same = [answer.tokens for answer in taken] == [answer.tokens for answer in expected]
    whole = all(answer.cached_tokens == answer.most_cached_tokens > 0 for answer in taken)
    print(f"== the same tokens as without the pool: {'yes' if same else 'NO'}")
    print(f"== every full block from the pool: {'yes' if whole else 'NO'}")
    return 0 if same and whole else 1


def table(answers: Sequence[Answer]) -> Sequence[Answer]:
    """Prints them."""
    print("   prompt tokens   from cache   first tokens of the answer")
    for answer in answers:
        print(f"   {answer.prompt_tokens:>13}   {answer.cached_tokens:>10}   {answer.tokens[:6]}")
    return answers


if __name__ == "__main__":
    sys.exit(main())
