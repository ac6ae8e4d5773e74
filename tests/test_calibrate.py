"""Calibration on runs that the program made itself, with a profile that is known, and on tables that cannot be fitted."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import trials
import yaml
from generated import ROOT

from rapid_dse import calibrate
from rapid_dse.analysis.calibration import Calibration, taken_by, without_cluster
from rapid_dse.analysis.fit import Fit, typical_base
from rapid_dse.config.cluster import Cluster
from rapid_dse.config.software import Software
from rapid_dse.events.backends import price
from rapid_dse.sweep.cases import group_cases

TRUTH = {"host_layer": 4e-3, "matmul_efficiency": 0.85, "elementwise_traffic": 2.8, "host_step": 0.05}


def table(rows: int = 60, noise: float = 0.03) -> pd.DataFrame:
    """Runs of two small models on one node of A100s, timed by a known profile with some noise."""
    return _timed(rows, noise).copy()


@cache
def _timed(rows: int, noise: float) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    frame = pd.DataFrame(
        {
            "hw": "a100",
            "hw.num_gpus": 8,
            "model": "gpt",
            "model.hidden_size": rng.choice([1024, 2048], rows),
            "model.num_hidden_layers": 24,
            "model.num_attention_heads": 16,
            "model.num_key_value_heads": 16,
            "software": "megatron_deepspeed",
            "workload.seq_len": 1024,
            "workload.precision": "fp16",
            "workload.global_batch_size": 64,
            "parallel.tp": rng.choice([1, 2, 4], rows),
            "parallel.micro_batch_size": rng.choice([1, 2, 4, 8], rows),
            "parallel.zero": 0,
            "parallel.recompute": "full",
        }
    )
    frame["model.intermediate_size"] = 4 * frame["model.hidden_size"]
    seconds = np.empty(rows)
    for group in group_cases(frame):
        scenario = group.portion.scenario
        base = typical_base(scenario.software).model_dump()
        profile = Software.model_validate(base | TRUTH)
        seconds[group.rows] = price(scenario.model_copy(update={"software": profile}), group.portion.layouts).step_time_s
    frame["measured.step_time_s"] = seconds * np.exp(noise * rng.standard_normal(rows))
    frame["measured.status"] = "ok"
    return frame


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(frame: pd.DataFrame, folder: Path, *options: str) -> int:
    path = folder / "runs.csv"
    frame.to_csv(path, index=False)
    return calibrate.main([str(path), "--software", "megatron_deepspeed", "--out", "mine", "--jobs", "1", *options])


def test_a_known_profile_is_found_again_and_composes(somewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(table(), somewhere) == 0
    profile = yaml.safe_load((somewhere / "conf/software/mine.yaml").read_text())
    assert profile["host"]["host_layer"] == pytest.approx(TRUTH["host_layer"], rel=0.15)
    assert profile["kernels"]["matmul_efficiency"] == pytest.approx(TRUTH["matmul_efficiency"], rel=0.1)
    (box,) = profile["measured"]
    assert (box["chip"], box["cluster"], box["precision"], box["zero"]) == ("a100", "reference", "bf16", [0])
    assert box["error"] < 0.08
    assert Software.model_validate(profile).kernels.dropout  # what was not fitted is megatron_deepspeed's own
    printed = capsys.readouterr()
    assert "expect about ±" in printed.out
    assert printed.out.splitlines()[-2].endswith("use it with software=mine")
    assert printed.out.splitlines()[-1].startswith("these runs say nothing of their cluster, since none spans two nodes;")
    assert "say little of" in printed.err


def of(silent: tuple[str, ...] = (), **cluster: Any) -> Calibration:
    found = Fit({"matmul_efficiency": 0.9}, {"matmul_efficiency": 0.1}, (), silent, 0.1)
    clusters = {"eos": Cluster.model_validate({"name": "eos"} | cluster)}
    return Calibration("nemo", typical_base(trials.scenario(software="nemo").software), found, 0.1, 40, 2, (), clusters, None)


def test_why_no_cluster_was_fitted_is_what_the_runs_lack() -> None:
    """Runs over many nodes whose times do not hang on them are not said to lie on one."""
    assert without_cluster(of(("cluster.eos.node_skew",))).endswith("say too little of their cluster")
    assert without_cluster(of(allreduce_busbw={8: 95})).endswith("beyond its bus bandwidths")
    assert without_cluster(of()).endswith("none spans two nodes")


def test_of_several_clusters_a_trial_takes_one() -> None:
    assert taken_by(["software=mine", "cluster=mine_eos", "cluster=mine_selene"]) == "software=mine cluster=mine_eos or cluster=mine_selene"
    assert taken_by(["software=mine"]) == "software=mine"


def test_thirty_rows_are_enough_and_one_parameter_can_be_chosen(somewhere: Path) -> None:
    assert run(table(30), somewhere, "--parameters", "host_layer,matmul_efficiency") == 0
    text = (somewhere / "conf/software/mine.yaml").read_text()
    assert "± " in text
    assert yaml.safe_load(text)["host"]["host_layer"] == pytest.approx(TRUTH["host_layer"], rel=0.25)


def spoiled(kind: str) -> pd.DataFrame:
    frame = table(40)
    if kind == "no column":
        return frame.drop(columns="measured.step_time_s")
    if kind == "all out of memory":
        return frame.assign(**{"measured.status": "oom", "measured.step_time_s": np.nan})
    if kind == "not a number":
        frame.loc[7, "measured.step_time_s"] = np.nan
    if kind == "milliseconds":
        frame["measured.step_time_s"] *= 1000
    if kind == "kiloseconds":
        frame["measured.step_time_s"] /= 1000
    if kind == "text":
        frame["measured.step_time_s"] = frame["measured.step_time_s"].astype(object)
        frame.loc[3, "measured.step_time_s"] = "fast"
    return frame.head(2) if kind == "two rows" else frame


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("no column", "has no column measured.step_time_s"),
        ("all out of memory", "no row ran (40 oom)"),
        ("not a number", "row 8 ran but measured.step_time_s=nan"),
        ("milliseconds", "are the step times in seconds"),
        ("kiloseconds", "are the step times in seconds"),
        ("text", "measured.step_time_s='fast' is no number"),
        ("two rows", "2 rows that ran; needed: at least 30"),
    ],
)
def test_a_table_that_cannot_be_fitted_is_one_line_and_no_profile(
    kind: str, says: str, somewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(spoiled(kind), somewhere) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (somewhere / "conf").exists()


def test_an_unknown_parameter_is_named_with_those_that_exist(somewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(table(30), somewhere, "--parameters", "speed") == 2
    assert "speed is no free parameter; allowed: elementwise_traffic" in capsys.readouterr().err


def test_sixty_measured_runs_predict_the_other_six_hundred(somewhere: Path) -> None:
    data = ROOT.parent / "shared" / "data" / "training_cases.csv"
    if not data.exists():
        pytest.skip(f"measured runs are not here ({data})")
    measured = pd.read_csv(data, keep_default_na=False, na_values=[""], low_memory=False)
    measured = measured[measured["suite"] == "vtrain_single"].reset_index(drop=True)
    chosen = np.random.default_rng(1).permutation(len(measured))[:60]
    assert run(measured.loc[chosen], somewhere) == 0
    rest = measured.drop(index=chosen).reset_index(drop=True)
    rest["software"] = "mine"
    predicted = np.empty(len(rest))
    for group in group_cases(rest):
        predicted[group.rows] = price(group.portion.scenario, group.portion.layouts).step_time_s
    assert np.abs(predicted / rest["measured.step_time_s"] - 1).mean() < 0.12
