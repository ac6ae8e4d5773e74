"""The tile model's own laws, a figure worked by hand, and published kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_device_models import chip

from rapid_dse.device import AttentionCall, AttentionSizes, operator_model
from rapid_dse.device.tiled import sustained_clock
from rapid_dse.device.tiles import SYNCHRONOUS, candidates

FIELDS = ("rows", "columns", "resident")
side = st.integers(1, 70_000)


def test_a_product_worked_by_hand() -> None:
    """3072 × 1152 × 8192 on an A100: 108 tiles of 256 × 128, one to each SM, no split."""
    hw = chip("a100")
    products = 2 * 3072 * 1152 * 8192
    clocks = products / (108 * 2048 * hw.efficiency.tensor) + SYNCHRONOUS.store_clocks * 256 * 128
    activity = products / (clocks * 108 * 2048)
    clock = 1.41e9 * min(1, hw.efficiency.clock * (activity / hw.efficiency.tensor) ** -0.5)
    multiplying = clocks / clock
    l2 = 108 * 8192 * 2 * (256 + 128) / (hw.l2.bandwidth * hw.efficiency.l2)
    stored = 3072 * 1152 * 2
    alone = 2 * 8192 * (256 + 128) * 108 * SYNCHRONOUS.saturation  # what one SM reads, at the share that it can draw
    hbm = max(2 * 8192 * (3072 + 1152) + stored, alone) / (hw.memory.bandwidth * hw.efficiency.memory)
    levels = np.array([multiplying, l2, hbm])
    together = levels.max() * np.sum((levels / levels.max()) ** 4) ** 0.25
    exposed = SYNCHRONOUS.store_exposed * stored / (hw.memory.bandwidth * hw.efficiency.memory)
    assert float(operator_model(hw).gemm(3072, 1152, 8192)) == pytest.approx(together + exposed + hw.kernel_latency)


def test_what_is_slowest_inside_an_sm_bounds_a_product() -> None:
    """The product above with shared memory at 100 GB/s: 108 tiles read 8192 × (256 + 128) operands of two bytes each; and in fp32, with
    registers at 1 TB/s: each multiply-add reads three operands of four bytes."""
    hw = chip("a100")
    slow = hw.model_copy(update={"shared_memory": hw.shared_memory.model_copy(update={"bandwidth": 1e11})})
    assert float(operator_model(slow).gemm(3072, 1152, 8192)) == pytest.approx(108 * 8192 * (256 + 128) * 2 / 1e11, rel=1e-3)
    slow = hw.model_copy(update={"registers": hw.registers.model_copy(update={"bandwidth": 1e12})})
    assert float(operator_model(slow).gemm(3072, 1152, 8192, precision="fp32")) == pytest.approx(3072 * 1152 * 8192 * 12 / 1e12, rel=1e-3)


def test_blocks_of_an_sm_are_those_that_its_registers_and_shared_memory_hold() -> None:
    hw = chip("a100")  # 256 KiB of registers and 164 KiB of shared memory an SM
    by_tile = {(row, column): int(n) for row, column, n in zip(*(np.ravel(getattr(candidates(hw), name)) for name in FIELDS), strict=True)}
    # 128 × 128 sums of 8 bytes are 128 KiB: two blocks; a stage of operands, 128 bytes of each of 256 rows and columns, is 32 KiB
    assert [by_tile[tile] for tile in ((256, 128), (128, 128), (128, 64), (64, 64))] == [1, 2, 4, 4]
    small = hw.model_copy(update={"shared_memory": hw.shared_memory.model_copy(update={"size": 108 * 48 * 2**10})})
    by_tile = {
        (row, column): int(n) for row, column, n in zip(*(np.ravel(getattr(candidates(small), name)) for name in FIELDS), strict=True)
    }
    assert [by_tile[tile] for tile in ((256, 128), (128, 128), (128, 64), (64, 64))] == [1, 1, 2, 3]


def test_a_tile_of_few_instructions_leaves_tensor_cores_idle() -> None:
    """64 × 64 elements are 32 instruction tiles of 16 × 8; of 64 tensor cores half work."""
    shares = candidates(chip("a100").model_copy(update={"tensor_cores_per_sm": 64}))
    assert set(shares.working[(shares.rows == 64) & (shares.columns == 64)].tolist()) == {0.5}
    assert candidates(chip("v100")).working.min() == 1


def test_whole_waves_show() -> None:
    """One tile more than the SMs hold costs a second wave, less what the clock gains while half of the chip idles."""
    model = operator_model(chip("a100"))
    rate = [2.0 * m * 256 * 16384 / float(model.gemm(m, 256, 16384)) for m in (108 * 128, 109 * 128)]
    assert rate[1] < rate[0]


@settings(max_examples=100, deadline=None)
@given(shape=st.tuples(side, side, side), factor=st.floats(1, 4))
def test_more_bandwidth_never_hurts(shape: tuple[int, ...], factor: float) -> None:
    base = chip("h100")
    faster = chip("h100", memory_bandwidth=base.memory.bandwidth * factor)
    assert operator_model(faster).gemm(*shape) <= operator_model(base).gemm(*shape) * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(shape=st.tuples(side, side, side), factor=st.sampled_from([1.25, 1.5, 2, 3]))
def test_a_larger_chip_is_never_slower(shape: tuple[int, ...], factor: float) -> None:
    """More SMs with their registers and shared memory, and with the L2 and the HBM to feed them.

    More SMs alone leave each a smaller share of these, which few blocks feel.
    """
    base = chip("h100")
    larger = chip(
        "h100",
        sms=int(base.sms * factor),
        registers=base.registers.model_copy(update={"size": base.registers.size * factor, "bandwidth": base.registers.bandwidth * factor}),
        shared_memory=base.shared_memory.model_copy(
            update={"size": base.shared_memory.size * factor, "bandwidth": base.shared_memory.bandwidth * factor}
        ),
        l2=base.l2.model_copy(update={"bandwidth": base.l2.bandwidth * factor}),
        memory_bandwidth=base.memory.bandwidth * factor,
    )
    assert operator_model(larger).gemm(*shape) <= operator_model(base).gemm(*shape) * (1 + 1e-9)


def test_the_clock_that_the_power_limit_leaves() -> None:
    hw = chip("h100")
    busy, half = sustained_clock(hw, np.array([hw.efficiency.tensor, 0.3]))
    assert busy == pytest.approx(hw.clock * hw.efficiency.clock)
    assert half == hw.clock
    assert sustained_clock(hw, np.array([0.9]), "fp8") < sustained_clock(hw, np.array([0.9]), "bf16")


def test_precision_and_accumulation() -> None:
    model = operator_model(chip("h100"))
    large = (8192, 8192, 8192)
    assert 1.6 < float(model.gemm(*large) / model.gemm(*large, precision="fp8")) < 2
    assert model.gemm(8192, 8192, 512, accumulate=True) > model.gemm(8192, 8192, 512)
    assert float(model.gemm(*large, batch=8) / model.gemm(*large)) == pytest.approx(8, rel=0.05)


# Published times: LLMCompass (ISCA 2024), Vidur's profiles.
@pytest.mark.parametrize(
    ("name", "shape", "seconds", "tolerance"),
    [
        ("h100", (4096, 4096, 4096), 193e-6, 0.1),
        ("h100", (4096, 28672, 8192), 2756e-6, 0.1),
        ("h100", (1, 57344, 8192), 348e-6, 0.15),
        ("a100", (8192, 8192, 8192), 3961e-6, 0.2),
    ],
)
def test_published_products(name: str, shape: tuple[int, ...], seconds: float, tolerance: float) -> None:
    assert float(operator_model(chip(name)).gemm(*shape)) == pytest.approx(seconds, rel=tolerance)


# Figures of FlashAttention-2 (2023) and -3 (2024, beside cuDNN 9.1), TFLOP/s as they count: libraries of the early generation.
@pytest.mark.parametrize(
    ("name", "kernel", "heads", "head_dim", "causal", "directions", "tflops"),
    [
        ("a100", "flash2", 16, 128, False, ("forward", "backward"), 203),
        ("a100", "flash2", 32, 64, True, ("forward", "backward"), 171),
        ("h100", "flash2", 16, 128, True, ("forward", "backward"), 328),
        ("h100", "flash2", 32, 64, False, ("forward",), 313),
        ("h100", "flash3", 16, 128, False, ("forward",), 648),
        ("h100", "flash3", 16, 128, True, ("forward",), 616),
        ("h100", "cudnn", 16, 128, True, ("forward",), 539),
    ],
)
def test_published_attention(
    name: str, kernel: Any, heads: int, head_dim: int, causal: bool, directions: tuple[Any, ...], tflops: float
) -> None:
    model, sizes = operator_model(chip(name)), AttentionSizes(1, heads, heads, 16384, 16384, head_dim, causal=causal)
    seconds = sum(float(model.attention(sizes, AttentionCall(way, kernel, generation="early"))) for way in directions)
    flops = 4.0 * 16384**2 * heads * head_dim * (0.5 if causal else 1) * (3.5 if len(directions) == 2 else 1)
    assert flops / seconds / 1e12 == pytest.approx(tflops, rel=0.06)


@pytest.mark.parametrize(
    ("name", "precision", "measured", "tolerance"),
    [
        # SemiAnalysis, "MI300X vs H100 vs H200 Benchmark: Training" (2024): products of a Llama's shapes.
        ("mi300x", "bf16", 620e12, 0.08),
        ("mi300x", "fp8", 990e12, 0.10),
        # Medians of aiconfigurator-core 0.12's large products in bf16 (TensorRT-LLM, SGLang, vLLM: 1,495, 1,458, 1,581 and 1,520 to 1,696).
        ("b200", "bf16", 1510e12, 0.12),
        ("b300", "bf16", 1570e12, 0.12),
    ],
)
def test_large_products_run_as_published(name: str, precision: str, measured: float, tolerance: float) -> None:
    seconds = float(operator_model(chip(name)).gemm(8192, 8192, 8192, precision=precision))
    assert 2 * 8192**3 / seconds == pytest.approx(measured, rel=tolerance)
