"""fp32 and TF32: two rates, one width; and the kernels that attention has under them."""

from __future__ import annotations

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
CASE = {"model": "llama2_7b", "hw": "a100", "workload__seq_len": 2048, "software__dropout": False}


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
    # No flash kernel takes 32-bit operands, so that a layer keeps its scores: heads × seq² × 4 bytes of each of 32 layers. Logits (10
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
    assert added == pytest.approx(32 * 32 * 2048.0**2 * 4 - 10 * 2048 * 32000 - 4 * 2048 * 32 * 32, rel=1e-3)


def test_chips_without_tf32_refuse_it() -> None:
    with pytest.raises(ValueError, match=r"workload.precision=tf32: v100 has no such mode; it has fp32, fp16"):
        priced(scenario(hw="v100", workload__precision="tf32"), ROW)
