"""How far to trust a row: boxes of measured runs, steps outside of them, and whether the promised share of unseen runs lies within."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import trials
from pydantic import ValidationError

from rapid_dse.analysis import envelope
from rapid_dse.analysis.envelope import boxes, expected_unseen, measured_lines
from rapid_dse.analysis.error_growth import Evidence, coverage, fitted_steps
from rapid_dse.analysis.fit import Runs
from rapid_dse.config.measured_boxes import MeasuredRuns
from rapid_dse.config.scenario import Scenario
from rapid_dse.simulate.growth import STEPS
from rapid_dse.simulate.trust import Trust, trust
from rapid_dse.sweep.outside import judged

BOX: dict[str, Any] = {
    "chip": "h100", "architecture": "hopper", "cluster": "reference", "precision": "bf16", "runs": 100, "models": 3, "error": 0.1,
    "zero": [1], "recompute": ["selective"], "schedule": ["1f1b"], "tp": [1, 8], "cp": [1, 1], "pp": [1, 8], "micro_batch": [1, 4],
    "gpus": [8, 512], "nodes": [1, 64], "seq_len": [4096, 8192], "parameters": [1e9, 1e11],
}  # fmt: skip
ROW: dict[str, Any] = {"num_gpus": 64, "global_batch_size": 64, "tp": 8, "pp": 2, "zero": 1, "recompute": "selective"}


def measured(*changes: dict[str, Any], **scenario: Any) -> Scenario:
    """A scenario whose profile has a box for each of ``changes``."""
    found = trials.scenario(**({"model": "llama3_1_8b"} | scenario))
    runs = tuple(MeasuredRuns.model_validate(BOX | change) for change in (changes or ({},)))
    return found.model_copy(update={"software": found.software.model_copy(update={"measured": runs})})


def of(row: dict[str, Any], *changes: dict[str, Any], **scenario: Any) -> Trust:
    return trust(measured(*changes, **scenario), trials.layouts(ROW | row))


def test_inside_a_box_the_error_is_the_boxs_and_nothing_is_outside() -> None:
    found = of({})
    assert found.expected_error.tolist() == [0.1]
    assert found.outside.tolist() == [-1]


OUTSIDE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"zero": 3, "pp": 1}, {}, "zero (measured: 1)"),
    ({"cp": 2}, {}, "cp (measured: 1)"),
    ({"recompute": "full"}, {}, "recompute (measured: selective)"),
    ({"schedule": "gpipe"}, {}, "schedule (measured: 1f1b)"),
    ({"micro_batch_size": 8}, {}, "micro-batch (measured: 1 to 4)"),
    ({"num_gpus": 1024}, {}, "GPUs (measured: 8 to 512)"),
    ({"tp": 16}, {}, "tp over nodes (measured: within a node); tp (measured: 1 to 8)"),
    ({}, {"hw": "h200"}, "hw (measured: h100)"),
    ({}, {"hw": "a100"}, "hw (measured: h100)"),
    ({}, {"cluster__name": "eos"}, "cluster (measured: reference)"),
    ({}, {"workload__precision": "fp8"}, "precision (measured: bf16)"),
    ({}, {"workload__seq_len": 16384}, "sequence length (measured: 4,096 to 8,192)"),
    ({}, {"model": "llama3_1_405b"}, "model size (measured: 1 to 100 billion parameters)"),
]


@pytest.mark.parametrize(("row", "scenario", "text"), OUTSIDE)
def test_each_step_outside_widens_and_is_named(row: dict[str, Any], scenario: dict[str, Any], text: str) -> None:
    found = of(row, **scenario)
    assert found.expected_error[0] > 0.1
    assert found.texts[found.outside[0]] == text


UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"hw": "mi300x"}, "hw"),
    ({"hw": "v100", "workload__precision": "fp16"}, "hw"),
    ({"workload__precision": "fp32"}, "precision"),
    ({"model": "mixtral_8x7b"}, "experts"),
]


@pytest.mark.parametrize("software", ["megatron_lm", "nemo"])
def test_experts_have_boxes_of_their_own(software: str) -> None:
    """Their error is that of measured runs of experts, whatever is known of dense models, and the other way round."""
    row = {"num_gpus": 256, "tp": 2, "pp": 8, "ep": 32, "vpp": 4, "etp": 1, "recompute": "none", "schedule": "interleaved_1f1b"}
    mixed = trials.scenario("h100", "qwen3_235b_a22b", software, workload__seq_len=4096)
    told = trust(mixed, trials.layouts(row | {"sequence_parallel": True}))
    ours = [box.error for box in mixed.software.measured if box.experts and box.chip == "h100" and box.precision == "bf16"]
    assert len(ours) == 1
    assert float(told.expected_error[0]) >= ours[0]
    dense = mixed.software.model_copy(update={"measured": tuple(box for box in mixed.software.measured if not box.experts)})
    assert np.isnan(trust(mixed.model_copy(update={"software": dense}), trials.layouts(row)).expected_error[0])


@pytest.mark.parametrize(("scenario", "name"), UNKNOWN)
def test_where_nothing_alike_was_measured_no_error_is_told(scenario: dict[str, Any], name: str) -> None:
    found = of({}, **scenario)
    assert np.isnan(found.expected_error[0])
    assert f"{name} (measured:" in found.texts[found.outside[0]]


def test_of_boxes_that_all_lack_something_the_nearest_in_the_rest_is_named() -> None:
    """MI300X in fp8, 64 GPUs: the last box has all but the chip, the others the chip's lack and more; their order tells nothing."""
    far = ({"gpus": [8, 8], "nodes": [1, 1]}, {"precision": "fp32"}, {"precision": "bf16"}, {"precision": "fp8"})
    found = of({}, *far, hw="mi300x", workload__precision="fp8")
    assert np.isnan(found.expected_error[0])
    assert found.texts[found.outside[0]] == "hw (measured: h100)"


def test_numbers_of_parameters_are_written_as_people_write_them() -> None:
    found = of({}, {"parameters": [1e9, 2e9]}, {"parameters": [1e11, 1.008e12]}, model="llama3_1_8b")
    assert found.texts[found.outside[0]] == "model size (measured: 1 to 2 billion parameters)"
    small = of({}, {"parameters": [1e11, 1.008e12]}, model="llama3_1_8b")
    assert small.texts[small.outside[0]] == "model size (measured: 100 to 1,008 billion parameters)"


def test_a_vendor_that_was_measured_is_told_and_a_profile_without_runs_is_not() -> None:
    assert of({}, {"chip": "mi300x", "architecture": "cdna3"}, hw="mi300x").expected_error.tolist() == [0.1]
    bare = trials.scenario()
    found = trust(bare.model_copy(update={"software": bare.software.model_copy(update={"measured": ()})}), trials.layouts(ROW))
    assert np.isnan(found.expected_error[0])
    assert "no training run" in found.texts[found.outside[0]]


def test_what_has_no_effect_lies_inside() -> None:
    """ZeRO without data parallelism, a schedule without pipelines, fp16 for bf16, and a cluster of jobs on one node."""
    assert of({"zero": 3, "num_gpus": 16}).outside.tolist() == [-1]
    assert of({"pp": 1, "schedule": "none"}, {"schedule": []}).outside.tolist() == [-1]
    assert of({}, workload__precision="fp16").outside.tolist() == [-1]
    assert of({"num_gpus": 8, "pp": 1}, cluster__name="eos").expected_error.tolist() == [0.1]


def test_the_steps_add_in_quadrature() -> None:
    """By hand: zero 3 and 4 times the GPUs, 2 doublings; each setting adds a hundredth of the box's variance, a doubling as much."""
    found = of({"zero": 3, "pp": 1, "num_gpus": 2048})
    by_hand = 0.1**2 + (STEPS["zero"] ** 2 + 0.01**2) + 4 * (STEPS["gpus"] ** 2 + 0.01**2)
    assert found.expected_error[0] == pytest.approx(np.sqrt(by_hand))


@pytest.mark.parametrize("software", ["megatron_lm", "nemo", "nanotron", "torchtitan", "llm_foundry", "megatron_deepspeed"])
def test_farther_never_promises_less(software: str) -> None:
    """Of the shipped profiles, each number alone driven away from where the runs of all boxes lie, others as they are."""
    scenario = trials.scenario(software=software, parallel__cp_kind="ring")  # of all-to-alls no error is known
    measured = scenario.software.measured
    doublings = {"num_gpus": ("gpus", 18), "micro_batch_size": ("micro_batch", 10), "cp": ("cp", 7), "pp": ("pp", 9)}
    for box in measured:
        row = {
            "num_gpus": 64,
            "tp": box.tp[1],
            "pp": box.pp[0],
            "zero": box.zero[0] if box.zero else 0,
            "micro_batch_size": box.micro_batch[0],
        }
        for name, (span, most) in doublings.items():
            farthest = max(getattr(each, span)[1] for each in measured)
            values = [2**power for power in range(most) if 2**power >= farthest]
            table = trials.layouts(*({"recompute": box.recompute[0]} | row | {name: value} for value in values))
            assert (np.diff(trust(scenario, table).expected_error) > 0).all(), name


def test_a_chip_that_no_profile_knows_is_never_promised_more() -> None:
    for software in ("megatron_lm", "nemo", "nanotron", "torchtitan"):
        layouts = trials.layouts({"num_gpus": 512, "tp": 4, "pp": 4}, {"num_gpus": 8, "tp": 8})
        known = {box.chip for box in trials.scenario(software=software).software.measured}
        told = [trust(trials.scenario(software=software, hw=chip), layouts).expected_error for chip in sorted(known)]
        for chip in ("gh200", "gb300", "mi355x"):
            other = trust(trials.scenario(software=software, hw=chip), layouts).expected_error
            assert (np.isnan(other) | (other > np.min(told, axis=0))).all()


def test_a_mixed_table_is_what_its_rows_are_alone() -> None:
    """Whatever shortcuts columns take: a table of random layouts row by row."""
    scenario = measured({}, {"precision": "fp8", "cp": [1, 8], "zero": [3], "error": 0.05}, {"tp_over_nodes": True, "tp": [16, 16]})
    generator = np.random.default_rng(0)
    choices = {"tp": (1, 8, 16), "cp": (1, 2, 8), "pp": (1, 4, 16), "zero": (0, 1, 3), "micro_batch_size": (1, 8), "num_gpus": (8, 4096)}
    rows = [{name: int(generator.choice(values)) for name, values in choices.items()} for _ in range(60)]
    table = trials.layouts(*({"recompute": "selective"} | row for row in rows))
    found = trust(scenario, table)
    assert len(set(found.texts)) == len(found.texts)
    for at in range(len(rows)):
        alone = trust(scenario, table.take(slice(at, at + 1)))
        assert found.expected_error[at] == alone.expected_error[0]
        text = [each.texts[code] if code >= 0 else None for each, code in ((found, found.outside[at]), (alone, alone.outside[0]))]
        assert text[0] == text[1]


def test_what_is_not_offered_stands_before_what_was_not_measured() -> None:
    scenario = measured(software__enforce=False, software="megatron_lm")
    found = judged(scenario, trials.layouts(ROW, ROW | {"schedule": "zero_bubble"}), {})
    said = [found.texts[code] if code >= 0 else None for code in found.outside]
    assert said == [None, "schedule zero_bubble: not offered by megatron_lm; schedule (measured: 1f1b)"]


def made_runs(noise: float, seed: int) -> tuple[list[Runs], list[np.ndarray[Any, Any]]]:
    """Runs of five models whose predictions are off by normal noise."""
    generator = np.random.default_rng(seed)
    runs, errors = [], []
    for hidden in (2048, 3072, 4096, 5120, 6144):
        scenario = trials.scenario(model="llama3_1_8b", model__hidden_size=hidden)
        layouts = trials.layouts(*({"num_gpus": gpus, "tp": tp} for gpus in (8, 16, 32, 64, 128) for tp in (1, 2, 4, 8)))
        runs.append(Runs(scenario, layouts, np.ones(len(layouts)), np.arange(len(layouts)) + 20 * len(runs), {}))
        errors.append(noise * generator.standard_normal(len(layouts)))
    return runs, errors


def test_of_unseen_runs_two_thirds_lie_within_and_the_error_is_the_noises_own() -> None:
    """Normal noise of 8 %: 68 % lie within 0.994 of it. Of 20 tables of 100 runs the share is known to 1 %, give or take."""
    shares = []
    for seed in range(20):
        runs, errors = made_runs(0.08, seed)
        (box,) = boxes(runs, errors)
        assert box.error == pytest.approx(0.08, rel=0.3)
        assert (box.runs, box.models, box.gpus, box.tp) == (100, 5, (8, 128), (1, 8))
        expected = expected_unseen(runs, errors)
        shares.append(np.mean(np.abs(np.concatenate(errors)) <= np.concatenate(expected)))
    assert 0.64 < np.mean(shares) < 0.74


def test_a_models_own_errors_are_not_behind_what_is_expected_of_it() -> None:
    runs, errors = made_runs(0.05, 0)
    before = expected_unseen(runs, errors)
    after = expected_unseen(runs, [errors[0] * 100, *errors[1:]])
    assert after[0].tolist() == before[0].tolist()
    assert (after[1] > before[1]).all()


def test_a_box_of_few_runs_leans_on_the_others() -> None:
    """Three runs without any error are no proof: 5 runs of the pool's 10 % count beside them, (5 / 8)^½ · 10 %."""
    runs, errors = made_runs(0.1, 1)
    alone = runs[0].take(np.arange(20) < 3)
    scenario = alone.scenario.model_copy(update={"hw": trials.scenario(hw="h200").hw})
    found = {box.chip: box for box in boxes([*runs, replace(alone, scenario=scenario)], [*errors, np.zeros(3)])}
    pool = envelope.within(np.concatenate([*errors, np.zeros(3)]))
    assert found["h200"].error == pytest.approx(np.sqrt(5 / 8) * pool, rel=1e-2)


def test_steps_are_found_again_and_cover_what_they_shall() -> None:
    """Runs off by 5 % inside; outside of zero by (5² + 12²)^½ = 13 %, outside of cp by no more than inside."""
    generator = np.random.default_rng(0)

    def runs(scale: float, **units: float) -> Evidence:
        errors = scale / 0.994 * generator.standard_normal(3000)
        return Evidence("made", errors, np.full(3000, 0.05), {name: np.full(3000, value) for name, value in units.items()})

    evidence = [runs(0.05), runs(0.13, zero=1.0), runs(0.05, cp=1.0), runs(np.hypot(0.05, 0.24), zero=2.0)]
    steps = fitted_steps(evidence, {"zero": 0.5, "cp": 0.5, "tp": 0.07})
    assert steps["zero"] == pytest.approx(0.12, rel=0.15)
    assert steps["cp"] < 0.02
    assert steps["tp"] == 0.07  # nothing is known of it
    assert 0.6 < coverage(evidence, steps) < 0.75


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tp": [8, 1]}, "the least first"),
        ({"error": 0}, "greater than 0"),
        ({"zero": [4]}, "less than or equal to 3"),
        ({"chips": ["h100"]}, "not permitted"),
    ],
)
def test_a_wrong_box_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MeasuredRuns.model_validate(BOX | change)


def test_boxes_come_back_from_the_yaml_that_they_are_written_as() -> None:
    import yaml

    runs = tuple(
        MeasuredRuns.model_validate(BOX | change) for change in ({}, {"tp_over_nodes": True, "zero": [], "parameters": [1.5e9, 7.25e10]})
    )
    tree = yaml.safe_load("\n".join(measured_lines(runs)))
    assert tuple(MeasuredRuns.model_validate(each) for each in tree["measured"]) == runs
