"""fp32 and TF32: two rates, one width; and the kernels that attention has under them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_device_models import chip
from trials import priced, scenario

from rapid_dse.device import operator_model

FLOPS = 2.0 * 8192**3


@pytest.mark.parametrize(
    ("name", "fp32", "tf32"),
    [("a100", 19.5e12, 156e12), ("h100", 66.9e12, 494.7e12), ("b200", 75e12, 1125e12), ("mi300x", 163.4e12, 653.7e12)],
)
def test_large_products_take_what_each_rate_leaves(name: str, fp32: float, tf32: float) -> None:
    # Data sheets' peaks in FLOP/s: nothing is faster, and a product of 8192³ reaches 60 to 95 % of fp32's peak, 35 to 95 % of TF32's.
    model = operator_model(chip(name))
    slow, fast = (float(model.gemm(8192, 8192, 8192, precision=word)) for word in ("fp32", "tf32"))
    assert FLOPS / fp32 / 0.95 < slow < FLOPS / fp32 / 0.60
    assert FLOPS / tf32 / 0.95 < fast < FLOPS / tf32 / 0.35


def test_fp32_products_of_an_h200_run_as_measured() -> None:
    # cuBLAS on an H200: 48.7 TFLOP/s at 2048³, 51.2 TFLOP/s at 8192³; TF32 403 TFLOP/s at 4096³.
    model = operator_model(chip("h200"))
    for precision, side, rate in (("fp32", 2048, 48.7e12), ("fp32", 8192, 51.2e12), ("tf32", 4096, 403e12)):
        assert float(model.gemm(side, side, side, precision=precision)) == pytest.approx(2 * side**3 / rate, rel=0.12)


ROW = {"num_gpus": 8, "global_batch_size": 64, "zero": 0}
CASE = {"model": "llama2_7b", "hw": "a100", "workload__seq_len": 2048}


def test_a_step_in_fp32_is_no_faster_than_its_lanes() -> None:
    # Llama 2 7B: 6.607e9 parameters in products (6.738e9 less the table's 32000 × 4096), 6 FLOP each a token, at 19.5 and 156 TFLOP/s.
    step = {}
    for precision, peak in (("fp32", 19.5e12), ("tf32", 156e12)):
        least = 6 * 6.607e9 * 64 * 2048 / 8 / peak
        step[precision] = float(priced(scenario(workload__precision=precision, **CASE), ROW).step_time_s[0])
        assert least < step[precision]
        assert precision == "tf32" or step[precision] < 1.5 * least
    assert 3 < step["fp32"] / step["tf32"] < 8  # 8 by the peaks; attention, norms and the optimizer do not shrink


def test_both_store_32_bits_and_write_the_scores_of_attention() -> None:
    # No flash kernel takes 32-bit operands, so that a layer keeps its scores: heads × seq² × 4 bytes of each of 32 layers. Logits (6
    # bytes each) and a head's log-sum-exp (4 bytes a token) are as wide either way.
    memory = {}
    for precision in ("fp32", "tf32", "bf16"):
        case = scenario(workload__precision=precision, **CASE)
        assert case.attention_kernel == ("flash2" if precision == "bf16" else "unfused")
        memory[precision] = priced(case, ROW | {"recompute": "none"})
    assert memory["fp32"].memory_parameters_bytes[0] == pytest.approx(4 * 6.738e9, rel=1e-3)
    for name in ("peak_memory_bytes", "memory_parameters_bytes", "memory_activations_bytes"):
        np.testing.assert_array_equal(getattr(memory["fp32"], name), getattr(memory["tf32"], name))
    added = memory["tf32"].memory_activations_bytes[0] - 2 * memory["bf16"].memory_activations_bytes[0]
    assert added == pytest.approx(32 * 32 * 2048.0**2 * 4 - 6 * 2048 * 32000 - 4 * 2048 * 32 * 32, rel=1e-3)


def test_chips_without_tf32_refuse_it() -> None:
    with pytest.raises(ValueError, match=r"tf32: v100 has no such mode; it has fp32, fp16; where tokens are decoded also int8, int4"):
        priced(scenario(hw="v100", workload__precision="tf32"), ROW)


NARROW: dict[str, Any] = {
    "hw": "gb200",
    "model": "llama3_1_70b",
    "software": "nemo",
    "workload__seq_len": 4096,
    "software__fp8_parameters": False,
    "software__host_layer": 0.0,
}
WIDE = {"num_gpus": 64, "tp": 4, "sequence_parallel": True, "zero": 1, "global_batch_size": 256, "recompute": "none"}


def test_fp4_is_faster_than_fp8_by_less_than_its_rate() -> None:
    """Twice the FLOP/s in products; attention, norms, casts and transfers do not shrink."""
    fp8, fp4 = (float(priced(scenario(**NARROW, workload__precision=precision), WIDE).step_time_s[0]) for precision in ("fp8", "fp4"))
    assert 0.5 * fp8 < fp4 < 0.97 * fp8


def test_copies_in_fp4_by_hand() -> None:
    """Beside 16-bit weights each product's weight is kept twice, half a byte and a byte of scale for 16 elements each."""
    fp8, fp4, bf16 = (
        float(priced(scenario(**NARROW, workload__precision=precision), WIDE).memory_parameters_bytes[0])
        for precision in ("fp8", "fp4", "bf16")
    )
    weights = 80 * (8192 * (8192 + 2 * 1024 + 8192) + 3 * 8192 * 28672) / 4
    assert fp8 - bf16 == pytest.approx(2 * weights, rel=1e-9)
    assert fp4 - bf16 == pytest.approx(2 * 0.5625 * weights, rel=1e-9)


def test_recipes_that_scale_blocks() -> None:
    """Of tiles, and of 32 elements, the largest element is found in the cast's own kernel, as with delayed scaling; tiles' scales are not
    known before a gather, which moves 16 bits."""
    base = NARROW | {"workload__precision": "fp8"}
    times = {
        recipe: priced(scenario(**base, software__fp8_recipe=recipe), WIDE) for recipe in ("delayed", "tensorwise", "blockwise", "mxfp8")
    }
    compute = {recipe: float(found.time_compute_s[0]) for recipe, found in times.items()}
    assert compute["mxfp8"] == pytest.approx(compute["delayed"], rel=1e-3)
    assert compute["blockwise"] < compute["tensorwise"]
    assert times["blockwise"].time_tp_s[0] > times["mxfp8"].time_tp_s[0]


def test_mxfp8_needs_a_chip_that_scales_blocks() -> None:
    with pytest.raises(ValueError, match=r"software.fp8_recipe=mxfp8: h100 has no products that scale blocks"):
        scenario(workload__precision="fp8", software__fp8_recipe="mxfp8")
    with pytest.raises(ValueError, match=r"workload.precision=fp4: h100 has no such mode"):
        scenario(workload__precision="fp4")
