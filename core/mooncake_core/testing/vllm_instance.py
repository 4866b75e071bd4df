"""`python -m mooncake_core.testing.vllm_instance RESULTS OPTIONS`, in an interpreter that has vLLM: one engine that answers.

OPTIONS is a JSON object of vLLM's own engine arguments. stdin: one JSON list of prompts per line; RESULTS, a file descriptor:
per line a JSON list of {"tokens", "prompt_tokens", "cached_tokens"}, an empty list once it is ready. It ends with stdin.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any


def main() -> None:
    results, options = os.fdopen(int(sys.argv[1]), "w"), json.loads(sys.argv[2])
    vllm: Any = importlib.import_module("vllm")
    kv_transfer = options.pop("kv_transfer_config", None)
    if kv_transfer is not None:
        options["kv_transfer_config"] = importlib.import_module("vllm.config").KVTransferConfig(**kv_transfer)
    max_tokens = options.pop("max_tokens")
    engine = vllm.LLM(**options)
    sampling = vllm.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    print("[]", file=results, flush=True)
    for line in sys.stdin:
        answers = [
            {
                "tokens": list(answer.outputs[0].token_ids),
                "prompt_tokens": len(answer.prompt_token_ids),
                "cached_tokens": answer.num_cached_tokens or 0,
            }
            for answer in engine.generate(json.loads(line), sampling, use_tqdm=False)
        ]
        print(json.dumps(answers), file=results, flush=True)


if __name__ == "__main__":
    main()
