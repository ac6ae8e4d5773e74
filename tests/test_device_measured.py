"""Measured tables: what they answer inside, outside, and when they are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_device_models import chip, noisy_table

from rapid_dse.device import operator_model
from rapid_dse.device.measured import Grid, published_table


def test_a_clean_table_is_returned_as_measured(tmp_path: Path) -> None:
    tiled = operator_model(chip("h100"))
    m, n, k = (axis.ravel() for axis in np.meshgrid([64, 1024, 8192], [512, 4096], [512, 4096]))
    seconds = 1.2 * tiled.gemm(m, n, k)
    pd.DataFrame({"m": m, "n": n, "k": k, "measured.time_s": seconds}).to_csv(tmp_path / "t.csv", index=False)
    model = operator_model(chip("h100", operator_model="measured", measured_table=str(tmp_path / "t.csv")))
    np.testing.assert_allclose(model.gemm(m, n, k), seconds)
    np.testing.assert_allclose(model.gemm(m, n, k, precision="fp16"), seconds)
    assert seconds.min() < float(model.gemm(512, 2048, 2048)) < seconds.max()


def test_beyond_the_table_time_grows_with_the_work_and_below_it_stays() -> None:
    axis = np.array([64.0, 128.0])
    grid = Grid((axis, axis, axis), np.log(np.full((2, 2, 2), 1e-3)))
    one = np.ones(1)
    assert grid.at(one * 256, one * 64, one * 64) == pytest.approx(2e-3)
    assert grid.at(one * 256, one * 256, one * 64) == pytest.approx(4e-3)
    assert grid.at(one * 8, one * 8, one * 8) == pytest.approx(1e-3)


def test_one_row_is_enough(tmp_path: Path) -> None:
    pd.DataFrame({"m": [4096], "n": [4096], "k": [4096], "measured.time_s": [3e-4]}).to_csv(tmp_path / "t.csv", index=False)
    model = operator_model(chip("h100", operator_model="measured", measured_table=str(tmp_path / "t.csv")))
    assert float(model.gemm(8192, 4096, 4096)) == pytest.approx(6e-4)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"m": [1], "n": [1]}, "lacks the columns k, measured.time_s"),
        ({"m": [1], "n": [1], "k": [1], "measured.time_s": [-1.0]}, "allowed: at least one, all values above 0"),
        ({"m": [1], "n": [1], "k": [1], "measured.time_s": [np.nan]}, "all values above 0"),
        ({"m": [1], "n": [1], "k": [1], "measured.time_s": [1e-3], "hw": ["a100"]}, "0 GEMM rows of h100"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, columns: dict[str, list[float]], message: str) -> None:
    pd.DataFrame(columns).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=message):
        operator_model(chip("h100", operator_model="measured", measured_table=str(tmp_path / "t.csv")))


def test_missing_files_packages_and_precisions_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no such file"):
        operator_model(chip("h100", operator_model="measured", measured_table="nowhere.csv"))
    monkeypatch.setattr("rapid_dse.device.measured.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"set hw.measured_table, or pip install rapid-dse\[measured\]"):
        published_table("h100")
    pd.DataFrame({"m": [1], "n": [1], "k": [1], "measured.time_s": [1e-3], "precision": ["fp8"]}).to_csv(tmp_path / "t.csv")
    model = operator_model(chip("h100", operator_model="measured", measured_table=str(tmp_path / "t.csv")))
    with pytest.raises(ValueError, match=r"workload.precision=bf16: the measured table of h100 has fp8"):
        model.gemm(1, 1, 1)


def test_the_published_package_is_read_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "aiconfigurator_core/systems/data/h100_sxm/gemm/trtllm/1.0"
    folder.mkdir(parents=True)
    (tmp_path / "aiconfigurator_core/__init__.py").touch()
    rows = pd.read_csv(noisy_table(tmp_path / "t.csv")).query("precision == 'bf16'")
    rows.assign(gemm_dtype="bfloat16", latency=rows["measured.time_s"] * 1e3).to_parquet(folder / "gemm_perf.parquet")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = operator_model(chip("h100", operator_model="measured"))
    assert float(model.gemm(8192, 4096, 4096)) == pytest.approx(float(operator_model(chip("h100")).gemm(8192, 4096, 4096)), rel=0.2)
    with pytest.raises(ValueError, match="aiconfigurator-core has no GEMMs of v100"):
        operator_model(chip("v100", operator_model="measured"))
