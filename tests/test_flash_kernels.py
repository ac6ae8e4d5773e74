"""Which fused attention kernel runs on which chip, and what exponentials cost it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_device_models import chip
from trials import scenario

from rapid_dse.device import AttentionCall, AttentionSizes, operator_model


@pytest.mark.parametrize(
    ("hw", "software", "kernel"),
    [
        # flash-attn 2 needs Ampere, flash-attn 3 Hopper; Transformer Engine takes cuDNN from Hopper on; ROCm has kernels of its own.
        ("v100", "nanotron", "fused_softmax"),
        ("a100", "megatron_lm", "flash2"),
        ("a100", "llm_foundry", "flash1"),
        ("l40s", "nemo", "flash2"),
        ("h100", "megatron_lm", "cudnn"),
        ("h100", "nanotron", "flash2"),
        ("b200", "megatron_lm", "cudnn"),
        ("b200", "torchtitan", "flash2"),
        ("b200", "llm_foundry", "triton"),
        ("mi300x", "nemo", "ck"),
    ],
)
def test_the_chip_runs_the_best_that_the_framework_has(hw: str, software: str, kernel: str) -> None:
    precision = "fp16" if hw == "v100" else "bf16"
    assert scenario(hw=hw, software=software, workload__precision=precision).attention_kernel == kernel


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hw": "a100", "software__flash_kernel": "flash3"}, "not built for a100; allowed: flash2, cudnn, flash1, triton, efficient"),
        ({"hw": "b200", "software__flash_kernel": "flash3"}, "not built for b200; allowed: cudnn, flash2, triton, efficient"),
        ({"hw": "mi300x", "software__flash_kernel": "cudnn"}, "not built for mi300x; allowed: ck, triton"),
        ({"software__flash_kernel": "flash3", "software__attention": "unfused"}, "allowed: null, or software.attention=flash"),
        ({"software__flash_kernel": "flash3", "workload__precision": "fp32"}, "takes 16-bit operands; allowed under fp32: null"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scenario(**changes)


def test_a_named_kernel_runs_where_the_chip_has_it() -> None:
    assert scenario(software__flash_kernel="flash3").attention_kernel == "flash3"


def rate(name: str, kernel: Any, **changes: Any) -> float:
    """FLOP/s of a causal forward pass, 16,384 tokens, 32 heads of 128."""
    seconds = float(
        operator_model(chip(name, **changes)).attention(AttentionSizes(1, 32, 32, 16384, 16384, 128), AttentionCall(kernel=kernel))
    )
    return 2.0 * 32 * 16384**2 * 128 / seconds


@pytest.mark.parametrize(
    ("name", "kernel", "measured"),
    [  # medians of aiconfigurator-core 0.12's tables at 16,384 tokens, bf16
        ("a100", "flash2", 204e12),
        ("h100", "flash3", 600e12),
        ("b200", "cudnn", 1214e12),
        ("gb300", "cudnn", 1680e12),
        ("l40s", "flash2", 206e12),
    ],
)
def test_flash_kernels_run_as_measured_on_each_generation(name: str, kernel: str, measured: float) -> None:
    assert rate(name, kernel) == pytest.approx(measured, rel=0.16)


def test_twice_the_exponentials_help_as_much_as_softmax_shows() -> None:
    # B200's cuDNN: 512 FLOP a score at 0.95 of 8192 a clock are 0.0658 clocks, softmax shows 0.050, of which 0.6 wait for exponentials:
    # with twice as many 0.035. Of a long sequence (0.0658 + 0.050) / (0.0658 + 0.035) = 1.15; the clock falls a little with more work.
    assert 1.06 < rate("b200", "cudnn", exponentials=32.0) / rate("b200", "cudnn") < 1.15
    assert rate("h100", "triton", exponentials=32.0) == rate("h100", "triton")  # it hides all of them


@pytest.mark.parametrize(
    ("name", "generation", "causal", "measured"),
    [  # 16,384 tokens, 16 heads of 128: figure of FlashAttention-3's repository (H100, cuDNN of 2024); medians of cuDNN 9.19 on an H200
        ("h100", "early", True, 539e12),
        ("h100", "early", False, 595e12),
        ("h200", "current", True, 629e12),
        ("h200", "current", False, 690e12),
    ],
)
def test_cudnn_runs_as_its_generation_does(name: str, generation: Any, causal: bool, measured: float) -> None:
    model = operator_model(chip(name))
    seconds = float(
        model.attention(AttentionSizes(1, 16, 16, 16384, 16384, 128, causal=causal), AttentionCall(kernel="cudnn", generation=generation))
    )
    assert 4.0 * 16 * 16384**2 * 128 * (0.5 if causal else 1.0) / seconds == pytest.approx(measured, rel=0.08)


def test_a_generation_changes_its_own_kernels_alone() -> None:
    for kernel, differs in (("flash2", True), ("cudnn", True), ("flash3", False), ("flash1", False), ("unfused", False)):
        times = {
            each: float(
                operator_model(chip("h100")).attention(
                    AttentionSizes(1, 16, 16, 8192, 8192, 128), AttentionCall(kernel=kernel, generation=each)
                )
            )  # type: ignore[arg-type]
            for each in ("early", "current")
        }
        assert (times["early"] != times["current"]) == differs


def test_shared_keys_cost_a_sum_over_the_heads_that_share_them() -> None:
    # dK and dV of 32 heads, 2 x 8,192 tokens x 128 elements of 2 bytes, written for each head and read again by the sum: 537 MB in all;
    # K, V, dK and dV themselves are a fourth as large, but HBM does not bound this kernel.
    hw = chip("h200")
    shared, own = (
        float(
            operator_model(hw).attention(
                AttentionSizes(2, 32, heads, 8192, 8192, 128), AttentionCall(kernel="flash2", direction="backward")
            )
        )
        for heads in (8, 32)
    )
    expected = 2 * 2 * (2 * 32 * 8192 * 2 * 128) / (hw.memory.bandwidth * hw.efficiency.memory)
    np.testing.assert_allclose(shared - own, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("direction", "batch", "tokens", "seconds"),
    [("forward", 4, 2048, 5.082e-3), ("forward", 1, 8192, 19.244e-3), ("backward", 4, 2048, 33.334e-3), ("backward", 1, 8192, 120.08e-3)],
)
def test_values_narrower_than_keys_by_the_memory_efficient_kernel(direction: Any, batch: int, tokens: int, seconds: float) -> None:
    """Measured on an H200 (PyTorch 2.11): 128 heads of 192, whose values are 128 wide, causal. FlashAttention-2 pads them."""
    device, wide = operator_model(chip("h200")), AttentionCall(direction=direction, kernel="flash2")
    sizes = AttentionSizes([batch], [128], [128], [tokens], [tokens], [192], [128])
    found = float(device.attention(sizes, AttentionCall(direction=direction, kernel="efficient"))[0])
    assert found == pytest.approx(seconds, rel=0.05)
    assert float(device.attention(AttentionSizes([batch], [128], [128], [tokens], [tokens], [192]), wide)[0]) < found
