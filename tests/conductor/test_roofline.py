"""Descriptions of models and hardware, and the times that follow from them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mooncake_core.conductor.cost import CostModel
from mooncake_core.conductor.hardware import Hardware, load_hardware
from mooncake_core.conductor.model_shape import ModelDescription, load_model
from mooncake_core.conductor.roofline import HINT_BATCH, Efficiency, Roofline
from mooncake_core.errors import ConfigError, ModelTooLarge

CONFIGS = Path(__file__).parents[2] / "configs"

PUBLISHED = {
    # name: (KV bytes per token, parameters in 1e9, those active in 1e9), each from the model's own publication:
    # 2 x layers x num_key_value_heads x head_dim x 2 B of config.json, and the parameters of the model card or report.
    "llama2-70b": (2 * 80 * 8 * 128 * 2, 69.0, 69.0),
    "llama3-70b": (320 << 10, 70.6, 70.6),  # FAST'25 section 2: 320 KiB
    "qwen2.5-7b": (2 * 28 * 4 * 128 * 2, 7.61, 7.61),
    "qwen2.5-72b": (2 * 80 * 8 * 128 * 2, 72.7, 72.7),
    "qwen3-32b": (2 * 64 * 8 * 128 * 2, 32.8, 32.8),
    "qwen3-235b-a22b": (2 * 94 * 4 * 128 * 2, 235, 22),
    "deepseek-v3": (
        70_272,
        671,
        37,
    ),  # "70.272 KB" in table 1 of arXiv 2505.09343; 671B, 37B active in arXiv 2412.19437
}


def model(name: str) -> ModelDescription:
    return load_model(CONFIGS / "models" / f"{name}.yaml")


def hardware(name: str) -> Hardware:
    return load_hardware(CONFIGS / "hardware" / f"{name}.yaml")


def test_every_model_is_checked() -> None:
    assert {path.stem for path in (CONFIGS / "models").glob("*.yaml")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_is_as_large_as_its_publication_says(name: str) -> None:
    found = model(name)
    kv_bytes, parameters, active = PUBLISHED[name]
    assert found.name == name
    assert found.kv_bytes_per_token == kv_bytes
    assert found.parameters / 1e9 == pytest.approx(parameters, rel=0.005)
    # Publications count the embeddings or the output layer as active, or both.
    assert found.active_parameters / 1e9 < active
    assert (found.active_parameters + 2 * found.output_parameters) / 1e9 > 0.985 * active


@pytest.mark.parametrize("path", sorted((CONFIGS / "hardware").glob("*.yaml")), ids=lambda path: path.stem)
def test_hardware_runs_a_small_model(path: Path) -> None:
    found = load_hardware(path)
    assert found.name == path.stem
    assert Roofline(model("qwen2.5-7b"), found).kv_capacity_tokens > 1_000_000


def test_a_70b_model_on_eight_a800_is_what_the_paper_has() -> None:
    found = Roofline(model("llama3-70b"), hardware("a800-x8"))
    assert found.kv_capacity_tokens == pytest.approx(1.3e6, rel=0.05)
    # 2 x 68.45e9 operations per token, and 4 x 80 layers x 8192 per pair, causal: by hand for 8,192 tokens at 50 % of 2.5 PFLOPS.
    linear, pairs = 2 * 68.451e9 * 8192, 4 * 80 * 8192 * 8192**2 / 2
    assert found.prefill_s(8192, 0) == pytest.approx((linear + pairs) / (0.5 * 8 * 312e12) + 80 * 30e-6, rel=1e-4)
    # 141.1 GB less the embedding table at 80 % of 16.3 TB/s, and 128k tokens of 320 KiB.
    weights_s = (141.1e9 - 2 * 128256 * 8192) / (0.8 * 8 * 2039e9)
    context_s = 131072 * 327680 / (0.8 * 8 * 2039e9)
    assert found.step_s(1, 131072) == pytest.approx(weights_s + context_s + 80 * 30e-6, rel=1e-3)


def test_a_prefix_saves_what_it_alone_would_take() -> None:
    found = Roofline(model("llama3-70b"), hardware("a800-x8"))
    overhead = found.prefill_s(0, 0)
    parts = found.prefill_s(6000, 0) + found.prefill_s(10_000, 6000)
    assert parts - overhead == pytest.approx(found.prefill_s(10_000, 0))


def test_the_context_of_a_step_is_linear() -> None:
    found = Roofline(model("qwen3-235b-a22b"), hardware("h800-x8"))
    first, second = (found.step_s(16, 2 * n) - found.step_s(16, n) for n in (10_000, 20_000))
    assert second == pytest.approx(2 * first)


def test_a_large_batch_touches_more_experts() -> None:
    sparse = Roofline(model("qwen3-235b-a22b"), hardware("h800-x8"))
    dense = Roofline(model("llama3-70b"), hardware("h800-x8"))
    assert sparse.step_s(8, 0) > 2 * sparse.step_s(1, 0)
    assert dense.step_s(8, 0) == dense.step_s(1, 0)


def test_the_hint_says_the_same_in_linear_form() -> None:
    found = Roofline(model("llama3-70b"), hardware("a800-x8"))
    costs = CostModel(found.hint())
    assert costs.prefill_s(30_000, 12_000) == pytest.approx(found.prefill_s(30_000, 12_000))
    assert costs.step_s(HINT_BATCH, 400_000) == pytest.approx(found.step_s(HINT_BATCH, 400_000))
    assert costs.fetch_s(87 * 10**9) == pytest.approx(1.0)  # FAST'25 figure 12: 87 GB/s of 4 x 200 Gbps


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(ModelTooLarge, match=r"671\.0e9 parameters in float8.*8 x 74\.51GiB less 10%.*too few"):
        Roofline(model("deepseek-v3"), hardware("h800-x8"))


def test_weights_that_leave_no_room_for_a_token_are_refused() -> None:
    shape = model("qwen2.5-7b")
    exact = msgspec.structs.replace(hardware("cpu"), device_memory=shape.weight_bytes + 100)
    with pytest.raises(ModelTooLarge, match="leaves 100 bytes for KV on cpu, a token takes 57344"):
        Roofline(shape, exact, Efficiency(memory_reserve=0.0))


def test_an_element_type_that_the_hardware_lacks_is_named() -> None:
    with pytest.raises(
        ConfigError, match="a800-x8 has no flops_per_s for float8: it has bfloat16, float16, float32, int8"
    ):
        Roofline(model("deepseek-v3"), hardware("a800-x8"))


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("layers: 4\n", ["heads: is missing", "hidden: is missing", "name: is missing"]),
        ("layers: two\n", [":1:9: layers: expected a whole number"]),
        ("layerz: 2\n", [":1:1: layerz: unknown key; did you mean layers?"]),
        ("mla:\n  rope_dim: 64\n", ["mla.kv_lora_rank: is missing", "mla.value_dim: is missing"]),
        ("heads: 12\nkv_heads: 5\n", [":2:11: kv_heads: expected a divisor of heads (12), got 5"]),
    ],
)
def test_a_wrong_model_names_file_line_and_field(text: str, problems: list[str], tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_model(path)
    for problem in problems:
        assert any(problem in line for line in caught.value.problems), caught.value.problems
    assert all(line.startswith(str(path)) for line in caught.value.problems)


def test_wrong_hardware_names_file_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "hardware.yaml"
    path.write_text("name: x\ndevices: 0\nflops_per_s:\n  bf16: 1e12\ndevice_memory: 80\ndisk: 1TB\n")
    with pytest.raises(ConfigError) as caught:
        load_hardware(path)
    assert caught.value.problems == [
        f"{path}:1:1: device_memory_bytes_per_s: is missing",
        f"{path}:1:1: nic_bytes_per_s: is missing",
        f"{path}:1:1: dram: is missing",
        f"{path}:1:1: disk_bytes_per_s: expected more than 0 where there is a disk",
        f"{path}:2:10: devices: expected 1 or more, got 0",
        f"{path}:4:9: flops_per_s.bf16: unknown element type; expected one of float32, float16, bfloat16, float8, int8",
    ]
