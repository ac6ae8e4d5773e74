"""Jobs under strain: which they are, what that costs, and how a fit tells it from a job's own all-reduce."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from program import done
from trials import layouts, priced, scenario

from rapid_dse.analysis.calibration import Options, calibrate
from rapid_dse.analysis.fit import typical_base
from rapid_dse.analysis.runs import known_states
from rapid_dse.config.software import Software
from rapid_dse.simulate import price
from rapid_dse.simulate.strain import strained
from rapid_dse.sweep.cases import group_cases

ROW = {"num_gpus": 32, "tp": 2, "global_batch_size": 256}
CALM = {f"software__{name}": 0.0 for name in ("host_layer", "host_collective_layer", "host_micro_batch", "host_step", "dp_overlap")}


def test_pipelines_over_several_nodes_and_large_jobs_are_strained() -> None:
    of = scenario(software="nanotron", software__strained_nodes=16)
    rows = layouts(
        {"num_gpus": 8, "pp": 2},  # within a node
        {"num_gpus": 16, "pp": 2},
        {"num_gpus": 64},
        {"num_gpus": 128},
    )
    assert strained(of, rows).tolist() == [False, True, False, True]
    for told in (False, True):
        assert (strained(scenario(software="nanotron", software__strained=told), rows) == told).all()


def test_a_table_of_both_states_is_priced_as_each_alone() -> None:
    rows = layouts(*({"num_gpus": 64, "tp": tp, "pp": pp} for pp in (1, 2, 1, 4) for tp in (1, 4)))
    mixed = price(scenario(software="nanotron"), rows).step_time_s
    calm, under = (price(scenario(software="nanotron", software__strained=told), rows).step_time_s for told in (False, True))
    np.testing.assert_allclose(mixed, np.where(rows.pp > 1, under, calm), rtol=1e-12)
    assert (under > calm).all()


def test_ranks_of_a_host_launch_in_turn() -> None:
    """32 layers × tp 2 × 10 ms, 16 micro-batches: all of it shows, since a layer's kernels take less."""
    of = scenario(**CALM, software__strained=True, software__strained_host_layer=0.01)
    row = ROW | {"micro_batch_size": 1}
    result = priced(of, row)
    kernels = float((result.time_compute_s + result.time_tp_s)[0])
    # beside them the norms' gradients, 1 MB, are summed once a step
    assert 0 < float(result.time_host_s[0]) + kernels - 16 * 32 * 2 * 0.01 < 1e-4
    assert float(priced(of, row | {"tp": 1}).time_host_s[0]) == 0  # one rank waits for no other


def test_each_bucket_of_gradients_waits_for_each_further_rank() -> None:
    """All-reduces alone: 16 ranks, buckets of 1 GB; reduce-scatters of ZeRO 1 do not wait."""
    waits = [
        scenario(**CALM, software__strained=True, software__gradient_bucket=1e9, software__strained_all_reduce_wait=w) for w in (0, 1e-3)
    ]
    without, within = (priced(of, ROW | {"zero": 0}).time_dp_s[0] for of in waits)
    sent = 4 * (8.03e9 / 2)  # fp32 gradients of the 8B model on two ranks
    assert within - without == pytest.approx(np.ceil(sent / 1e9) * 15 * 1e-3)
    without, within = (priced(of, ROW | {"zero": 1}).time_dp_s[0] for of in waits)
    assert within == without


def test_no_trees_and_slower_hops_only_under_strain() -> None:
    settings = {"software__strained_trees": False, "software__strained_fabric_latency": 1e-4} | CALM
    row = {"num_gpus": 256, "zero": 0}
    healthy = priced(scenario(**CALM), row).step_time_s
    assert priced(scenario(**settings, software__strained=False), row).step_time_s == healthy
    assert priced(scenario(**settings, software__strained=True), row).step_time_s > healthy * 1.01


@pytest.mark.parametrize("zero", [0, 1])
def test_reductions_hide_behind_nothing_only_under_strain(zero: int) -> None:
    settings = CALM | {"software__strained_overlap": False, "software__dp_overlap": 0.9}
    row = {"num_gpus": 64, "zero": zero, "micro_batch_size": 4}
    hidden, shown, whole = (
        float(priced(scenario(**(settings | {"software__strained": told, "software__dp_overlap": share})), row).time_dp_s[0])
        for told, share in ((False, 0.9), (True, 0.9), (False, 0.0))
    )
    assert shown == whole > hidden


def test_bus_bandwidth_tells_from_eight_nodes_on() -> None:
    frame = pd.DataFrame(
        {"hw.num_gpus": [32, 64, 64, 512, 512, 512], "measured.allreduce_busbw_gbs": [155.0, 95.0, 188.0, 13.0, 170.0, np.nan]}
    )
    frame["software"] = "nanotron"
    found, groups = known_states(frame, group_cases(frame))
    assert found["software.strained"].tolist() == [None, True, False, True, False, None]
    for group in groups:
        assert all(group.portion.scenario.software.strained is found["software.strained"][row] for row in group.rows)
    assert "software.strained" not in frame
    without = frame.drop(columns="measured.allreduce_busbw_gbs")
    assert known_states(without, [])[0] is without


def test_a_fit_learns_the_state_from_a_jobs_own_all_reduce_and_predicts_without_it() -> None:
    """Half of the jobs on 16 nodes ran strained, which no layout tells: fitted with the bus bandwidths, the strain is found again."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "hw.num_gpus": 128,
            "model": rng.choice(["llama3_8b", "llama2_13b"], 80),
            "software": "nanotron",
            "workload.seq_len": 4096,
            "workload.global_batch_size": 256,
            "parallel.tp": rng.choice([2, 4, 8], 80),
            "parallel.micro_batch_size": rng.choice([1, 2, 4], 80),
            "parallel.zero": rng.choice([0, 1], 80),
            "parallel.recompute": "none",
            "measured.allreduce_busbw_gbs": rng.choice([45.0, 180.0], 80),  # rings alone: 45 GB/s × 16 nodes
        }
    )
    seconds = np.empty(len(frame))
    groups = group_cases(frame)
    for group in groups:
        for state in (False, True):
            truth = {"strained": state, "strained_host_layer": 4e-3, "strained_all_reduce_wait": 1e-4}
            of = group.portion.scenario
            profile = Software.model_validate(typical_base(of.software).model_dump() | truth)
            slow = frame["measured.allreduce_busbw_gbs"].to_numpy()[group.rows] < 100
            times = price(of.model_copy(update={"software": profile}), group.portion.layouts).step_time_s
            seconds[group.rows[slow == state]] = times[slow == state]
    frame["measured.step_time_s"] = seconds
    base = typical_base(groups[0].portion.scenario.software)
    names = ("strained_host_layer", "strained_all_reduce_wait")

    def fitted(table: pd.DataFrame) -> tuple[dict[str, float], float, float]:
        found = calibrate(table, group_cases(table), "nanotron", base, "runs", Options(names))
        return found.fitted.values, found.fitted.error, found.held_out_error

    values, error, unseen = fitted(frame)
    assert values["strained_host_layer"] == pytest.approx(4e-3, rel=0.03)
    assert values["strained_all_reduce_wait"] == pytest.approx(1e-4, rel=0.1)
    assert error < 0.02 < unseen  # the state is known to the fit, and to no prediction
    assert fitted(frame.drop(columns="measured.allreduce_busbw_gbs"))[1] > 0.05


def test_a_trial_says_which_state_it_is_priced_in(tmp_path: Path) -> None:
    given = ("software=nanotron", "model=llama3_1_8b", "hw.num_gpus=16")
    assert "priced without strain" in done(tmp_path, *given).out
    assert "priced under strain" in done(tmp_path, *given, "parallel.pp=2").out
    assert "strain" not in done(tmp_path, *given[1:], "parallel.pp=2").out
