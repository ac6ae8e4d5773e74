"""Steps on one GPU: against measured steps of an H200, by hand, and the command on small tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from layout_spread import EVENT_BACKENDS, Case, case
from test_device_models import chip
from trials import priced, scenario

from rapid_dse import validate
from rapid_dse.analysis.steps import predict_steps, step_errors
from rapid_dse.device import operator_model
from rapid_dse.events.backends import price
from rapid_dse.simulate.results import TIME_TERMS

WIDTHS = {"hw": "h200", "hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn": 14336, "vocab": 128256, "accum": 1}
PLAIN = WIDTHS | {"mode": "eager", "recompute": "none", "head": False, "opt": "bf16", "attn": "flash", "fp8": False, "params": 436224000.0}
# Medians measured on one H200 for this project (PyTorch 2.11): forward, backward, optimizer (s), reserved bytes at the peak.
MEASURED = ("fwd_time_s", "bwd_time_s", "opt_time_s", "peak_reserved_bytes")
STEPS = [
    ({"layers": 2, "seq": 4096, "mb": 1}, (0.00710, 0.01440, 0.00225, 4.66e9)),
    ({"layers": 2, "seq": 8192, "mb": 1}, (0.01572, 0.03299, 0.00227, 6.66e9)),
    ({"layers": 2, "seq": 4096, "mb": 1, "mode": "compile"}, (0.00641, 0.01369, 0.00226, 4.36e9)),
    ({"layers": 2, "seq": 4096, "mb": 1, "recompute": "full"}, (0.00710, 0.02031, 0.00225, 4.41e9)),
    ({"layers": 2, "seq": 4096, "mb": 1, "attn": "cudnn"}, (0.00666, 0.01331, 0.00227, 4.77e9)),
    ({"layers": 2, "seq": 4096, "mb": 1, "opt": "master"}, (0.00704, 0.01423, 0.00513, 9.97e9)),
    ({"layers": 2, "seq": 4096, "mb": 1, "opt": "amp"}, (0.00808, 0.01647, 0.00356, 9.50e9)),
    ({"layers": 2, "seq": 4096, "mb": 1, "head": True, "opt": "none", "params": 1486888960.0}, (0.01653, 0.02921, np.nan, np.nan)),
    ({"layers": 8, "seq": 4096, "mb": 1, "params": 1744896000.0}, (0.02813, 0.05795, 0.00913, 16.70e9)),
]


def table_of(steps: list[tuple[dict[str, object], tuple[float, ...]]]) -> pd.DataFrame:
    return pd.DataFrame([PLAIN | shape | dict(zip(MEASURED, values, strict=True)) for shape, values in steps])


def test_measured_steps_of_an_h200() -> None:
    table = table_of(STEPS)
    predicted = predict_steps(table)
    for column, within in zip(MEASURED, (0.05, 0.06, 0.06, 0.12), strict=True):
        known = table[column].notna()
        np.testing.assert_allclose(predicted.loc[known, f"predicted.{column}"], table.loc[known, column], rtol=within)
        assert predicted.loc[~known, f"predicted.{column}"].isna().all()
    errors = step_errors(table, predicted)
    assert errors.loc[("all", "fwd + bwd"), "mape"] < 0.03
    assert errors.loc[("all", "fwd + bwd"), "n"] == len(table)


def test_micro_batches_add_up_with_the_sums_of_their_gradients() -> None:
    shape = {"layers": 2, "seq": 2048, "mb": 1}
    once, four = (
        predict_steps(table_of([(shape, (1.0, 1.0, 1.0, 1.0)), (shape | {"accum": 4}, (1.0, 1.0, 1.0, 1.0))]).assign(time_s=1.0))
        .T.to_numpy()
        .T
    )
    forward, backward, update = once[0], once[1], once[2]
    hw = chip("h200")
    added = 6 * 436224000 / (hw.memory.bandwidth * hw.efficiency.memory * 0.92)  # two 16-bit gradients read, one written, at streaming rate
    assert four[3] - update == pytest.approx(4 * (forward + backward) + 3 * added, rel=2e-3)


def test_full_recomputation_that_stops_early_leaves_out_the_last_product() -> None:
    shape = {"layers": 2, "seq": 4096, "mb": 1}
    none, full = predict_steps(table_of([(shape, (1.0,) * 4), (shape | {"recompute": "full"}, (1.0,) * 4)]))["predicted.bwd_time_s"]
    forward = predict_steps(table_of([(shape, (1.0,) * 4)]))["predicted.fwd_time_s"][0]
    hw = chip("h200")
    down = operator_model(hw).gemm(4096, 4096, 14336)[()] / hw.efficiency.sustained
    assert full - none == pytest.approx(forward - 2 * down, rel=1e-9)


def test_the_optimizers_step_is_bound_by_arithmetic_or_by_hbm() -> None:
    hw = chip("h200")
    device, parameters = operator_model(hw), 268435456
    # 16-bit states: 5.05 ps a parameter measured (1.356 ms for 268 million); 32-bit ones at what streaming reaches of 4.8 TB/s
    assert float(device.update(parameters, 14)) == pytest.approx(1.356e-3, rel=0.03)
    assert float(device.update(parameters, 28)) == pytest.approx(parameters * 28 / (4.8e12 * 0.81 * 0.92), rel=0.01)


def test_a_folder_of_tables_is_written_out_with_predictions_beside_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    steps = table_of(STEPS[:2]).assign(kind="train_step")
    pd.concat([steps, steps[:1].assign(fp8=True)]).to_csv(folder / "steps.csv", index=False)
    kernel = {
        "hw": "h200",
        "kind": "gemm",
        "precision": "bf16",
        "m": 8192,
        "n": 8192,
        "k": 8192,
        "layout": "forward",
        "measured.time_s": 1.45e-3,
    }
    pd.DataFrame([kernel, kernel | {"kind": "sorting"}]).to_csv(folder / "kernels.csv", index=False)
    pd.DataFrame({"kind": ["lstm"], "time_s": [1.0]}).to_csv(folder / "lstm.csv", index=False)
    assert validate.main([str(folder), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "sorting" in printed
    assert "time_s: nothing here predicts such a table yet" in printed
    assert "1 rows: casts to fp8 of an eager script" in printed
    written = pd.read_csv(out / "steps.csv")
    assert list(written.columns).index("predicted.fwd_time_s") == list(written.columns).index("fwd_time_s") + 1
    assert written["predicted.bwd_time_s"].notna().tolist() == [True, True, False]
    kernels = pd.read_csv(out / "kernels.csv")
    assert kernels["predicted.measured.time_s"][0] == pytest.approx(1.45e-3, rel=0.12)
    assert np.isnan(kernels["predicted.measured.time_s"][1])
    assert validate.main([str(folder), "--out", str(folder)]) == 2
    assert "is the table itself" in capsys.readouterr().err
    assert validate.main([str(tmp_path / "empty"), "--out", str(out)]) == 2


def test_compute_is_slowed_by_the_transfers_that_it_hides() -> None:
    """FSDP of 8 GPUs over NVLink: each pass of each layer gathers 218 M weights of 16 bits and the backward pass scatters as many gradients
    of 32 bits; a ring sends 7/8 of it at 450 GB/s · 0.845, and every layer hides it. All of it counts in the share that is set."""
    row = {"num_gpus": 8, "zero": 3, "global_batch_size": 8, "recompute": "none"}
    plain, slowed = (
        priced(scenario(software="torchtitan", workload__seq_len=8192, software__dp_overlap=1.0, software__overlap_slowdown=share), row)
        for share in (0.0, 0.25)
    )
    assert plain.time_dp_s[0] < 0.2 * plain.time_compute_s[0]
    weights = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    hidden = 32 * weights * (2 + 2 + 4) * 7 / 8 / (450e9 * 0.845)
    # transfers of half a gigabyte take up to an eighth longer than the longest ones at that rate
    assert 1.0 < (slowed.time_compute_s[0] - plain.time_compute_s[0]) / (0.25 * hidden) < 1.125
    assert np.isclose(slowed.step_time_s, sum(getattr(slowed, f"time_{term}_s") for term in TIME_TERMS), rtol=1e-9).all()
    alone = {"num_gpus": 1, "zero": 0, "global_batch_size": 1}
    one, other = (priced(scenario(software="torchtitan", software__overlap_slowdown=share), alone) for share in (0.0, 0.5))
    assert one.step_time_s[0] == other.step_time_s[0]


@pytest.mark.parametrize(
    "one",
    [
        case(num_gpus=8, zero=3, global_batch_size=16, settings={"software__overlap_slowdown": 0.3}),
        case(num_gpus=8, tp=8, sequence_parallel=1, recompute=2, global_batch_size=4, settings={"software__overlap_slowdown": 0.3}),
    ],
    ids=str,
)
def test_backends_slow_compute_alike(one: Case) -> None:
    closed = price(one.scenario("analytical"), one.layouts())
    for backend in EVENT_BACKENDS:
        found = price(one.scenario(backend, backend__network="ideal"), one.layouts())
        assert float(found.step_time_s[0]) == pytest.approx(float(closed.step_time_s[0]), rel=0.02), backend
