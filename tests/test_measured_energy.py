"""Tables of measured energy: what is read of them, what is predicted beside it, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from serving_trials import priced, scenario

from rapid_dse import validate
from rapid_dse.analysis.measured_energy import predict_energy, unpredicted
from rapid_dse.analysis.served_runs import is_served, predict_served
from rapid_dse.config.scenario import Scenario

# Sustained loads of 2 s on an H200, per call: FLOP, HBM bytes, L2 bytes, seconds, joules (NVML's counter).
LOADS = pd.DataFrame(
    [
        ("idle", None, None, None, None, None, 2.00289, 243.737),
        ("read_sum", None, None, 0.0, 8e9, None, 0.00187525, 1.32079),
        ("copy_l2", None, None, 0.0, 0.0, 1.67772e7, 3.35167e-06, 0.00136573),
        ("flash_fwd", None, "cudnn", 1.09951e12, 5.36871e8, None, 0.00201232, 1.40094),
        ("decode_attention", None, None, 8.58993e9, 2.14748e9, None, 0.00089417, 0.623723),
        ("gemm", "zeros", None, 1.09951e12, 4.02653e8, None, 0.00140292, 0.576234),
    ],
    columns=["op", "data", "impl", "flops", "bytes", "l2_bytes", "time_s", "energy_j"],
).assign(hw="h200", kind="power", duty=np.nan, precision=None)
# Passes of Llama 8B on an H200: phase, sequences, tokens of context, mode, seconds, joules.
PASSES = pd.DataFrame(
    [
        ("decode", 1, 2048, 0.00486542, 2.59981),
        ("decode", 64, 2048, 0.0118507, 8.46892),
        ("decode", 8, 512, 0.004923, 2.67427),
        ("decode", 1, 2048, 0.010284, 3.29848),  # bound by the host
        ("prefill", 1, 2048, 0.0530475, 36.4678),
    ],
    columns=["phase", "batch", "context", "time_s", "energy_j"],
).assign(
    hw="h200", kind="llama_inference", net="llama8b", attn="flash", hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, layers=32
)
# Runs of vLLM on H100 (ml-energy/leaderboard, public/data/tasks at 0cd52da): loads, and what was measured of them.
SERVED = pd.DataFrame(
    [
        ("llama3_1_8b", 1, 404, 16, 0.0081, 513.28, 0.2765),
        ("llama3_1_70b", 4, 352, 64, 0.0226, 500.38, 0.8006),
    ],
    columns=[
        "model",
        "hw.num_gpus",
        "workload.decode_len",
        "workload.concurrency",
        "measured.tpot_s",
        "measured.power_w_per_gpu",
        "energy",
    ],
)


def test_loads_and_passes_of_an_h200() -> None:
    chips = {"h200": scenario("h200").hw}
    for table in (LOADS, PASSES):
        found = predict_energy(table, chips)["predicted.energy_j"]
        known = unpredicted(table).eq("")
        assert found.notna().equals(known)
        np.testing.assert_allclose(found[known], table.loc[known, "energy_j"], rtol=0.09)
    assert unpredicted(LOADS).iloc[-1] == "zeros or ones switch fewer transistors than random operands"


def test_power_of_served_requests() -> None:
    gpus = SERVED["hw.num_gpus"]
    table = SERVED.drop(columns="energy").assign(
        hw="h100", software="vllm", workload="inference", **{"workload.prompt_len": 300, "parallel.tp": gpus}
    )
    assert is_served(table)
    predicted, why = predict_served(table)
    assert why == []
    np.testing.assert_allclose(predicted["predicted.measured.power_w_per_gpu"], table["measured.power_w_per_gpu"], rtol=0.2)
    table.loc[0, "parallel.tp"] = 3
    predicted, why = predict_served(table)
    assert len(why) == 1
    assert predicted["predicted.measured.tpot_s"].isna().tolist() == [True, False]


def test_the_command_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LOADS.to_csv(tmp_path / "loads.csv", index=False)
    assert validate.main([str(tmp_path / "loads.csv"), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "1 rows: zeros or ones switch fewer transistors than random operands" in told
    written = pd.read_csv(tmp_path / "out/loads.csv")
    assert list(written.columns).index("predicted.energy_j") == list(written.columns).index("energy_j") + 1
    assert written["predicted.energy_j"].notna().sum() == len(LOADS) - 1


def test_four_bit_weights_alone_where_a_chip_multiplies_none() -> None:
    """An H100 widens 4-bit weights: as fast as int4's, in other words; in training there is no such mode."""

    def seconds(precision: str) -> float:
        of: Scenario = scenario("h100", workload__precision=precision)
        return float(priced(of, {"num_gpus": 1, "concurrency": 8}).tpot_s[0])

    assert seconds("fp4") == pytest.approx(seconds("int4"))
    assert seconds("fp4") < 0.7 * seconds("bf16")
    assert priced(scenario("h100", workload__precision="fp4"), {"num_gpus": 1, "concurrency": 8}).mfu[0] < 1
