"""A planned cluster as the YAML that starts it."""

from __future__ import annotations

from typing import Any, Final

import yaml

from mooncake_core.bench.plan import Trial
from mooncake_core.sim.load import Setup

_HEAD: Final = """\
# {prefill} prefill and {decode} decode instances of {model} on {hardware}, one instance on each host, for {ratio:.2%} of the
# requests of {trace} within a TTFT of {ttft:g}s and a TBT of {tbt:g}s, as simulated by `mooncake plan`.
# The same file goes to each host; start there what belongs to it (`mooncake start --role prefill --name prefill-0 -c ...`),
# with MODEL, KEY_FILE and the hosts' addresses in the environment: MASTER_HOST, PREFILL_0_HOST, DECODE_0_HOST and so on.
# The costs are those of the simulation; `mooncake bench calibrate` measures them on the engine.
"""


def cluster_yaml(setup: Setup, trial: Trial, *, hardware: str, trace: str) -> str:
    """With a head that says what it is for."""
    model, slo = setup.model, setup.config.slo
    engine: dict[str, Any] = {
        "kind": "torch",
        "kv_memory": setup.host.hbm_blocks * model.block_bytes,
        "chunk_tokens": setup.config.engine.chunk_tokens,
        "cost": _cost(setup),
    }
    node: dict[str, Any] = {"capacity": trial.choice.dram, "object_size": model.block_bytes}
    if trial.choice.disk:
        node["tiers"] = [{"kind": "lmdb", "path": "${DISK:-/var/lib/mooncake}", "capacity": trial.choice.disk}]
    prefills = [{**_member("prefill", index, engine), "local_node": node} for index in range(trial.prefill)]
    decodes = [{**_member("decode", index, engine), "local_node": node} for index in range(trial.decode)]
    cluster = {
        "cluster": "planned",
        "model": "${MODEL:-demo}",
        "block_tokens": model.block_tokens,
        "auth": {"key_file": "${KEY_FILE:-~/.config/mooncake/cluster.key}"},
        "master": {"host": "${MASTER_HOST:-127.0.0.1}"},
        "gateway": {"host": "${MASTER_HOST:-127.0.0.1}"},
        "prefill": prefills,
        "decode": decodes,
        "scheduler": {
            "policy": trial.choice.policy,
            "admission": trial.choice.admission,
            "ttft_slo": slo.ttft,
            "tbt_slo": slo.tbt,
        },
    }
    head = _HEAD.format(
        prefill=trial.prefill,
        decode=trial.decode,
        model=model.name,
        hardware=hardware,
        ratio=trial.goodput_ratio or 0.0,
        trace=trace,
        ttft=slo.ttft,
        tbt=slo.tbt,
    )
    return head + yaml.dump(cluster, Dumper=_NoAnchors, sort_keys=False, width=120)


class _NoAnchors(yaml.SafeDumper):
    """Writes equal parts out: references between them are hard to read."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _member(role: str, index: int, engine: dict[str, Any]) -> dict[str, Any]:
    return {"name": f"{role}-{index}", "host": f"${{{role.upper()}_{index}_HOST:-127.0.0.1}}", "engine": engine}


def _cost(setup: Setup) -> dict[str, float]:
    hint = setup.hint
    found = {
        "prefill_base": hint.prefill_base_s,
        "prefill_per_token": hint.prefill_per_token_s,
        "prefill_per_token2": hint.prefill_per_token2_s,
        "step_base": hint.step_base_s,
        "step_per_sequence": hint.step_per_sequence_s,
        "step_per_context_token": hint.step_per_context_token_s,
        "fetch_bytes_per_s": hint.fetch_bytes_per_s,
        "load_bytes_per_s": hint.load_bytes_per_s,
    }
    return {name: float(f"{value:.4g}") for name, value in found.items()}
