"""Small kernels of PyTorch against an H200's, and the laws that their times obey."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_device_models import chip

from rapid_dse.analysis.kernels import predict_kernels
from rapid_dse.analysis.small_kernels import ROW_KERNELS, row_kernel

# Medians on one H200 (PyTorch 2.11, cold L2, measured for this project): kind, rows, columns, bytes of one fused kernel, s.
MEASURED = [
    ("layernorm", 16384, 4096, 268e6, 102.7e-6),
    ("layernorm", 4096, 8192, 134e6, 62.0e-6),
    ("layernorm", 2048, 12288, 101e6, 49.4e-6),
    ("rmsnorm", 16384, 4096, 268e6, 79.6e-6),
    ("rmsnorm", 1024, 8192, 33.6e6, 15.7e-6),
    ("rmsnorm", 128, 4096, 2.1e6, 6.9e-6),
    ("softmax", 32768, 2048, 268e6, 150.0e-6),
    ("add", 4096, 8192, 201e6, 47.5e-6),
    ("gelu", 16384, 14336, 940e6, 254.5e-6),
    ("silu_mul", 4096, 14336, 352e6, 142.6e-6),
    ("silu_mul_bwd", 4096, 14336, 587e6, 251.6e-6),
    ("cross_entropy_fwd_bwd", 4096, 128256, 3152e6, 6.81e-3),
    ("adamw_fused", 131072, 8192, 15.03e9, 5.506e-3),
]


def test_measured_small_kernels_of_an_h200() -> None:
    table = pd.DataFrame(MEASURED, columns=["kind", "m", "n", "bytes", "measured.time_s"]).assign(hw="h200", chip="h200", note="cold L2")
    predicted = predict_kernels(table, {"h200": chip("h200")})
    np.testing.assert_allclose(predicted, table["measured.time_s"], rtol=0.15)
    assert np.abs(predicted / table["measured.time_s"] - 1).mean() < 0.06


@pytest.mark.parametrize("kind", sorted(ROW_KERNELS))
def test_a_row_kernel_takes_no_less_than_its_chain_its_work_and_its_bytes(kind: str) -> None:
    hw, kernel = chip("h200"), ROW_KERNELS[kind]
    rows, columns = (axis.ravel() for axis in np.meshgrid([1.0, 100.0, 132.0, 2112.0, 1e4, 1e6], [64.0, 4096.0, 8192.0]))
    seconds = row_kernel(hw, kind, rows, columns)
    assert np.all(seconds * hw.clock >= columns * kernel.chain)
    assert np.all(seconds * hw.clock >= rows * columns * kernel.work / 132)
    assert np.all(seconds[rows >= 1e4] >= 4 * (rows * columns)[rows >= 1e4] / 4.8e12)
    by_rows = row_kernel(hw, kind, np.arange(1.0, 5000.0), np.full(4999, 4096.0))
    assert np.all(np.diff(by_rows) >= 0)
    # a million rows: the work of all SMs, the last blocks' chain no part of it that counts
    assert float(row_kernel(hw, kind, np.array(1e6), np.array(4096.0))) == pytest.approx(
        max(1e6 * 4096 * kernel.work / (132 * hw.clock), 4 * 1e6 * 4096 / (4.8e12 * 0.81 * 0.92 * 1.2)), rel=0.01
    )


def test_pytorch_2_0s_layer_norm_on_an_a100() -> None:
    # LLMCompass (ISCA 2024): rows, columns, s on the host's clock, which adds 46 us.
    measured = [(4096, 4096, 79.4e-6), (8192, 4096, 117.8e-6), (16384, 4096, 194.1e-6), (32768, 4096, 347.9e-6)]
    table = pd.DataFrame(measured, columns=["m", "n", "measured.time_s"])
    table = table.assign(kind="layernorm", hw="a100", chip="a100", note="incl. launch overhead", year=2023.0)
    early = predict_kernels(table, {"a100": chip("a100")})
    np.testing.assert_allclose(early, table["measured.time_s"], rtol=0.1)
    later = predict_kernels(table.assign(year=2026), {"a100": chip("a100")})
    assert np.all(later > early)
