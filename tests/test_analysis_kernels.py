"""Predicted against measured kernels: rows of the published tables, and what becomes of those that cannot be priced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_device_models import chip

from rapid_dse.analysis.chips import chips
from rapid_dse.analysis.kernels import error_table, precisions, predict_kernels, read_kernels
from rapid_dse.analysis.measured_tables import predict_table
from rapid_dse.config.table_file import read_table

HOSTED = "host wall clock incl. launch+sync; median; 3 warm-ups with 1 s sleeps"
# LLMCompass (ISCA 2024), Vidur, FlashAttention-2's benchmark figure, an all-reduce.
ROWS = [
    {"hw": "a100", "kind": "gemm", "m": 4096, "n": 12288, "k": 12288, "note": HOSTED, "measured.time_s": 4.458e-3},
    {"hw": "a100", "kind": "gemm", "m": 8192, "n": 64, "k": 64, "note": HOSTED, "measured.time_s": 29.6e-6},
    {"hw": "h100", "kind": "gemm", "m": 4096, "n": 4096, "k": 4096, "measured.time_s": 193e-6},
    {"hw": "a100", "kind": "gelu", "m": 134217728, "n": 1, "note": "incl. launch overhead", "measured.time_s": 373e-6},
    {
        "hw": "h100",
        "kind": "attention_fwd_bwd",
        "batch": 1,
        "seq_len": 16384,
        "heads": 16,
        "head_dim": 128,
        "causal": True,
        "impl": "FlashAttention-2",
        "measured.time_s": 4 * 16384**2 * 16 * 128 * 0.5 * 3.5 / 328e12,
    },
    {"hw": "h100", "kind": "all_reduce", "measured.time_s": 1e-3},
    {"hw": "z9000", "kind": "gemm", "m": 1, "n": 1, "k": 1, "measured.time_s": 1e-3},
]
CHIPS = {name: chip(name) for name in ("a100", "h100")}


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    pd.DataFrame(ROWS).assign(source="", layout="").to_csv(tmp_path / "kernels.csv", index=False)
    return read_kernels(tmp_path / "kernels.csv")


def test_published_kernels(table: pd.DataFrame) -> None:
    predicted = predict_kernels(table, CHIPS)
    np.testing.assert_allclose(predicted[:5], table["measured.time_s"][:5], rtol=0.2)
    assert np.isnan(predicted[5:]).all()


def test_each_product_is_priced_in_its_own_precision() -> None:
    # cuBLASLt and cuBLAS on an H200, medians of a table measured for this project: TFLOP/s at 8192³ in fp8 and bf16, 4096³ in TF32,
    # 2048³ in fp32. An A100 has no fp8.
    measured = [("fp8", 8192, 1489e12), ("bf16", 8192, 760e12), ("tf32", 4096, 403e12), ("fp32", 2048, 48.7e12)]
    rows = [{"hw": "h200", "precision": name, "m": n, "n": n, "k": n, "measured.time_s": 2 * n**3 / rate} for name, n, rate in measured]
    rows.append(rows[0] | {"hw": "a100"})
    table = pd.DataFrame(rows).assign(kind="gemm", layout="forward", note="")
    table["chip"] = table["hw"]
    predicted = predict_kernels(table, {"h200": chip("h200"), "a100": chip("a100")})
    np.testing.assert_allclose(predicted[:4], table["measured.time_s"][:4], rtol=0.12)
    assert predicted[1] > 1.7 * predicted[0]
    assert np.isnan(predicted[4])
    assert precisions(pd.DataFrame({"precision": ["fp16 (not printed)", "bf16/fp16", np.nan]})).tolist() == ["fp16", "bf16", "bf16"]


def test_collectives_are_priced_by_whoever_can(table: pd.DataFrame) -> None:
    predicted = predict_kernels(table, CHIPS, lambda rows, hw: np.full(len(rows), 2e-3))
    assert predicted[5] == 2e-3


def test_the_error_table_counts_what_it_cannot_price(table: pd.DataFrame) -> None:
    errors = error_table(table, predict_kernels(table, CHIPS))
    assert errors.loc[("all_reduce", "h100"), "unpriced"] == 1
    assert errors.loc[("gemm", "z9000"), "unpriced"] == 1
    assert errors.loc[("gemm", "a100"), "n"] == 2
    assert errors.loc[("gemm", "a100"), "mape"] < 0.2
    exact = error_table(table, table["measured.time_s"].to_numpy(float) * 1.1)
    assert exact["mape"].to_numpy() == pytest.approx(0.1)
    assert exact["bias"].to_numpy() == pytest.approx(0.1)


def test_forward_and_backward_tables_are_read_alike(tmp_path: Path) -> None:
    shape = {"kind": "matmul", "gpu": "A100-PCIe-80GB", "m": 4096, "n": 4096, "k": 8192}
    rows = [
        {**shape, "layout_or_stage": "NN (dgrad)", "time_ms_derived": 1.183},
        {**shape, "layout_or_stage": "NT (wgrad)", "time_ms_derived": 1.25},
        {**shape, "kind": "group_matmul", "num_groups": 4, "layout_or_stage": "fwd", "time_ms_derived": 4.7},
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    table = read_kernels(tmp_path / "t.csv")
    predicted = predict_kernels(table, {"a100_pcie": chip("a100_pcie")})
    np.testing.assert_allclose(predicted, table["measured.time_s"], rtol=0.1)
    assert predicted[1] > predicted[0]


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match="lacks the columns hw, kind, measured"):
        read_kernels(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("kind,hw,measured.time_s\ngemm,h100,1\n", "rows of kind=gemm need a column that the table lacks"),
        ("kind,hw,measured.time_s\nsoftmax,h100,1\n", "rows of kind=softmax need a column that the table lacks: m"),
        ("kind,hw,measured.time_s\ngemm,h100,0\n", "row 1: measured.time_s=0; expected a number above 0"),
        ("kind,hw,measured.time_s\ngemm,h100,1\ngemm,h100,fast\n", "row 2: measured.time_s='fast'"),
        ("kind,hw,measured.time_s\ngemm,h100,1,5\n", "row 1 has 4 cells, the header has 3"),
    ],
)
def test_a_table_of_kernels_that_says_too_little_is_refused_in_a_line(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "kernels.csv").write_text(text)
    with pytest.raises(ValueError, match=line):
        predict_table(read_table(tmp_path / "kernels.csv"), chips({"h100"}), "kernels.csv")
