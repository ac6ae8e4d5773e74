"""The figures in conf/ against what makers and papers publish."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from rapid_dse.config import Hardware, Model, Scenario, parse
from rapid_dse.model.parameters import count

ROOT = Path(__file__).parent.parent
HARDWARE = sorted(path.stem for path in (ROOT / "conf/hw").glob("*.yaml"))
MODELS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))

# Published dense peaks in TFLOP/s (fp32 without tensor cores), HBM bandwidth in GB/s and capacity in GiB; sources stand in the files.
PUBLISHED: dict[str, dict[str, float | None]] = {
    "v100": {"fp32": 15.7, "tf32": None, "bf16": None, "fp16": 125, "fp8": None, "bandwidth": 900, "capacity": 32},
    "a100": {"fp32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312, "fp8": None, "bandwidth": 2039, "capacity": 80},
    "a100_40gb": {"fp32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312, "fp8": None, "bandwidth": 1555, "capacity": 40},
    "a100_pcie": {"fp32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312, "fp8": None, "bandwidth": 1935, "capacity": 80},
    "h100": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4, "fp8": 1978.9, "bandwidth": 3350, "capacity": 80},
    "h100_96gb": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4, "fp8": 1978.9, "bandwidth": 2400, "capacity": 96},
    "h200": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4, "fp8": 1978.9, "bandwidth": 4800, "capacity": 141},
    "h800": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4, "fp8": 1978.9, "bandwidth": 3350, "capacity": 80},
    "b200": {"fp32": 75, "tf32": 1125, "bf16": 2250, "fp16": 2250, "fp8": 4500, "bandwidth": 8000, "capacity": 180},
    "gb200": {"fp32": 80, "tf32": 1250, "bf16": 2500, "fp16": 2500, "fp8": 5000, "bandwidth": 8000, "capacity": 186},
    "gb300": {"fp32": 80, "tf32": 1250, "bf16": 2500, "fp16": 2500, "fp8": 5000, "bandwidth": 8000, "capacity": 279},
    "l40s": {"fp32": 91.6, "tf32": 183, "bf16": 362.05, "fp16": 362.05, "fp8": 733, "bandwidth": 864, "capacity": 48},
    "mi300x": {"fp32": 163.4, "tf32": 653.7, "bf16": 1307.4, "fp16": 1307.4, "fp8": 2614.9, "bandwidth": 5300, "capacity": 192},
    "a800": {"fp32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312, "fp8": None, "bandwidth": 2039, "capacity": 80},
    "h20": {"fp32": 44, "tf32": 74, "bf16": 148, "fp16": 148, "fp8": 296, "bandwidth": 4000, "capacity": 96},
    "gh200": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4, "fp8": 1978.9, "bandwidth": 4000, "capacity": 96},
    "b300": {"fp32": 75, "tf32": 1125, "bf16": 2250, "fp16": 2250, "fp8": 4500, "bandwidth": 7700, "capacity": 270},
    "mi325x": {"fp32": 163.4, "tf32": 653.7, "bf16": 1307.4, "fp16": 1307.4, "fp8": 2614.9, "bandwidth": 6000, "capacity": 256},
    "mi355x": {"fp32": 157.3, "tf32": None, "bf16": 2516.6, "fp16": 2516.6, "fp8": 5033, "bandwidth": 8000, "capacity": 288},
}

# Total memory in MiB that nvidia-smi (rocm-smi) shows of a card.
SHOWN = {
    "v100": 32510,
    "a100": 81920,
    "a100_40gb": 40960,
    "a100_pcie": 81920,
    "h100": 81559,
    "h100_96gb": 97871,
    "h200": 143771,
    "h800": 81559,
    "b200": 183359,
    "gb200": 189471,
    "gb300": 284208,
    "l40s": 46068,
    "mi300x": 196592,
    "a800": 81920,
    "h20": 97871,
    "gh200": 97871,
    "b300": 275040,
    "mi325x": 262128,
    "mi355x": 294896,
}

# Published parameter counts: model cards and papers named in the model's file; Llama 2's from its checkpoints.
PARAMETERS = {
    "gpt": 6.7e9,
    "gpt3_175b": 174.6e9,
    "llama": 6.738e9,
    "llama2_7b": 6.738e9,
    "llama2_13b": 13.016e9,
    "llama2_70b": 68.977e9,
    "llama3_8b": 8.030e9,
    "llama3_70b": 70.554e9,
    "llama3_1_8b": 8.030e9,
    "llama3_1_70b": 70.554e9,
    "llama3_1_405b": 405.85e9,
    "mixtral_8x7b": 46.703e9,
    "qwen3_30b_a3b": 30.532e9,
    "qwen3_235b_a22b": 235.09e9,
}

MIXTRAL_8X7B = Model(  # mistralai/Mixtral-8x7B-v0.1 config.json
    name="mixtral_8x7b",
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14336,
    vocab_size=32000,
    num_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=14336,
)
DEEPSEEK_V3 = Model(  # arXiv 2412.19437 section 4.2, without the multi-token-prediction module
    name="deepseek_v3",
    hidden_size=7168,
    num_hidden_layers=61,
    num_attention_heads=128,
    num_key_value_heads=128,
    intermediate_size=18432,
    vocab_size=129280,
    num_experts=256,
    num_experts_per_tok=8,
    moe_intermediate_size=2048,
    n_shared_experts=1,
    first_k_dense_replace=3,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)
QWEN3_30B_A3B = Model(  # Qwen/Qwen3-30B-A3B config.json: a head size of its own, norms of queries and keys
    name="qwen3_30b_a3b",
    hidden_size=2048,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    intermediate_size=6144,
    vocab_size=151936,
    qk_norm=True,
    num_experts=128,
    num_experts_per_tok=8,
    moe_intermediate_size=768,
)


@cache
def load(group: str, name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((ROOT / "conf" / group / f"{name}.yaml").read_text())
    return tree


def scenario(hardware: str, model: str = "llama") -> Scenario:
    precision = "fp16" if hardware == "v100" else "bf16"
    return parse(
        {
            "hw": load("hw", hardware),
            "model": load("model", model),
            "workload": {"precision": precision},
            "software": {"name": "megatron_lm"},
        }
    )


def chip(name: str) -> Hardware:
    return scenario(name).hw


def test_every_option_is_here() -> None:
    assert set(PUBLISHED) == set(HARDWARE)
    assert set(PARAMETERS) <= set(MODELS)


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("model", MODELS)
def test_every_pair_parses_and_is_named_as_its_file(hardware: str, model: str) -> None:
    parsed = scenario(hardware, model)
    assert (parsed.hw.name, parsed.model.name) == (hardware, model)
    assert parsed.hw.num_gpus == 64


@pytest.mark.parametrize("name", HARDWARE)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16", "fp8"])
def test_dense_peak_is_the_published_one(name: str, precision: str) -> None:
    published = PUBLISHED[name][precision]
    if published is None:
        with pytest.raises(ValueError, match="has no such mode; it has fp32"):
            chip(name).peak_flops(precision)
    else:
        assert chip(name).peak_flops(precision) == pytest.approx(published * 1e12, rel=5e-3)


@pytest.mark.parametrize("name", HARDWARE)
def test_memory_is_the_published_one(name: str) -> None:
    hardware, published = chip(name), PUBLISHED[name]
    assert hardware.memory.bandwidth == pytest.approx(published["bandwidth"] * 1e9, rel=5e-3)  # type: ignore[operator]
    assert hardware.memory.capacity == published["capacity"] * 2**30  # type: ignore[operator]
    # What nvidia-smi shows holds the driver's own reserve and what a process's context takes.
    assert 0.4 < SHOWN[name] / 1024 - hardware.memory.usable / 2**30 < 1.8
    assert SHOWN[name] / 1024 <= hardware.memory.capacity / 2**30


@pytest.mark.parametrize("name", HARDWARE)
def test_memory_levels_grow_outward_and_slow_down(name: str) -> None:
    hardware = chip(name)
    bandwidths = [level.bandwidth for level in (hardware.registers, hardware.shared_memory, hardware.l2, hardware.memory)]
    assert bandwidths == sorted(bandwidths, reverse=True)
    assert hardware.memory.capacity > hardware.l2.size
    assert hardware.registers.size > hardware.shared_memory.size


@pytest.mark.parametrize("name", HARDWARE)
def test_on_chip_bandwidths_follow_from_lanes_and_clock(name: str) -> None:
    hardware = chip(name)
    lanes = min((64, 128), key=lambda width: abs(hardware.peak_flops("fp32") / (2 * hardware.sms * hardware.clock) - width))
    assert hardware.registers.bandwidth == pytest.approx(3 * 4 * lanes * hardware.sms * hardware.clock, rel=0.01)
    width = 256 if name == "mi355x" else 128  # CDNA 4 reads twice as much of its LDS a clock
    assert hardware.shared_memory.bandwidth == pytest.approx(width * hardware.sms * hardware.clock, rel=0.01)


@pytest.mark.parametrize("name", HARDWARE)
def test_network_is_slower_outward_and_open_at_the_end(name: str) -> None:
    hardware = chip(name)
    dimensions = hardware.network.dimensions
    assert hardware.gpus_per_node == {"gb200": 72, "gb300": 72, "gh200": 4}.get(name, 8)
    assert dimensions[-1].size is None
    assert [d.bandwidth for d in dimensions] == sorted((d.bandwidth for d in dimensions), reverse=True)
    assert [d.latency for d in dimensions] == sorted(d.latency for d in dimensions)
    assert [d.energy for d in dimensions] == sorted(d.energy for d in dimensions)


@pytest.mark.parametrize("name", HARDWARE)
def test_sustained_matrix_products_stay_near_the_power_limit(name: str) -> None:
    # A large product reaches about 0.92 of the rate that the limit leaves; joules go with clock^0.8. Hopper's highest clock is 1,980 MHz.
    hardware = chip(name)
    held = hardware.efficiency.clock * hardware.efficiency.sustained
    share = held * (min(1.0, hardware.clock / 1.98e9) if hardware.architecture == "hopper" else 1.0)
    rate = 0.92 * hardware.peak_flops("fp16") * held * hardware.efficiency.tensor
    power = hardware.energy.idle + rate * hardware.energy.flop["fp16"] * share**0.8
    assert power < 1.07 * hardware.energy.tdp
    assert power > 0.85 * hardware.energy.tdp or name == "h20"  # whose few products its power does not limit


@pytest.mark.parametrize("name", HARDWARE)
def test_energy_is_given_for_each_precision_and_no_other(name: str) -> None:
    hardware = chip(name)
    assert set(hardware.energy.flop) == {key for key, rate in hardware.tensor_flop_per_sm_clock if rate is not None}


@pytest.mark.parametrize("name", HARDWARE)
def test_every_figure_has_its_source_beside_it(name: str) -> None:
    for number, line in enumerate((ROOT / f"conf/hw/{name}.yaml").read_text().splitlines(), start=1):
        value, _, source = line.partition("#")
        if re.search(r":.*\d", value) and not value.startswith("name:"):
            assert len(source.strip()) >= 2, f"{name}.yaml:{number} has no source: {line}"


@pytest.mark.parametrize("name", MODELS)
def test_every_model_names_its_source(name: str) -> None:
    first = (ROOT / f"conf/model/{name}.yaml").read_text().split("name:")[0]
    assert first.startswith("# ")
    assert "config.json" in first or "arXiv" in first


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_equal_the_published_count(name: str) -> None:
    # "6.7B" is all that GPT-3's paper prints of the default of gpt.
    tolerance = 0.01 if name == "gpt" else 5e-3
    assert count(scenario("h100", name).model).total == pytest.approx(PARAMETERS[name], rel=tolerance)


@pytest.mark.parametrize(
    ("model", "total", "active"),
    [(MIXTRAL_8X7B, 46.7e9, 12.9e9), (DEEPSEEK_V3, 671.0e9, 37.0e9), (QWEN3_30B_A3B, 30.5e9, 3.3e9)],
    ids=lambda value: value.name if isinstance(value, Model) else "",
)
def test_parameters_of_mixtures_equal_the_published_counts(model: Model, total: float, active: float) -> None:
    counts = count(model)
    assert counts.total == pytest.approx(total, rel=5e-3)
    assert counts.active == pytest.approx(active, rel=0.02)


def test_parameters_of_llama_3_1_8b_by_hand() -> None:
    counts = count(scenario("h100", "llama3_1_8b").model)
    assert counts.attention == 4096 * 4096 * 2 + 4096 * 1024 * 2
    assert counts.mlp == 3 * 4096 * 14336
    assert counts.norm == 2 * 4096
    assert counts.embedding == counts.head == 128256 * 4096
    assert counts.positions == counts.router == counts.expert == counts.moe_layers == 0
    assert counts.total == counts.active == 8_030_261_248  # the checkpoint's own count


def test_parameters_of_gpt2_equal_the_checkpoint() -> None:
    gpt2 = Model.model_validate(
        load("model", "gpt")
        | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12, "intermediate_size": 3072}
    )
    assert count(gpt2, positions=1024).total == 124_439_808


def test_table_in_the_documentation_is_that_of_the_files() -> None:
    rows = [line for line in (ROOT / "docs/hardware.md").read_text().splitlines() if line.startswith("| `")]
    assert rows == [documented(name) for name in ORDER]
    assert sorted(ORDER) == HARDWARE


ORDER = (
    *("v100", "a100", "a100_40gb", "a100_pcie", "a800", "h100", "h100_96gb", "h200", "h800", "h20", "gh200"),
    *("b200", "b300", "gb200", "gb300", "l40s", "mi300x", "mi325x", "mi355x"),
)


def documented(name: str) -> str:
    """The row of docs/hardware.md for the chip: peaks in TFLOP/s, memory in GiB and TB/s, links in GB/s a GPU one way."""
    hardware = chip(name)
    peaks = [
        f"{hardware.peak_flops(precision) / 1e12:,.0f}" if getattr(hardware.tensor_flop_per_sm_clock, precision) else "–"
        for precision in ("fp32", "tf32", "bf16", "fp16", "fp8")
    ]
    memory = [f"{hardware.memory.capacity / 2**30:g}", f"{hardware.memory.usable / 2**30:g}", f"{hardware.memory.bandwidth / 1e12:.2f}"]
    links = " → ".join(f"{d.size or 'any'} × {d.bandwidth / 1e9:g}" for d in hardware.network.dimensions)
    return f"| `{name}` | {' | '.join(peaks)} | {' | '.join(memory)} | {links} | {hardware.energy.tdp:g} | {hardware.price:g} |"
