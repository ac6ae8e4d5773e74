"""How far to trust rows of requests: inside measured loads their error, outside a wider one that says why, and of all else nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from serving_trials import engines, priced, scenario

from rapid_dse import calibrate, validate
from rapid_dse.analysis.serving_envelope import served_boxes
from rapid_dse.config.measured_boxes import Sent, ServedRuns
from rapid_dse.config.scenario import Scenario
from rapid_dse.simulate.served_growth import SERVED_ERRORS, SERVED_STEPS
from rapid_dse.simulate.trust import trust
from rapid_dse.sweep import show
from rapid_dse.sweep.outside import judged

BOX = ServedRuns(
    chip="h100", architecture="hopper", precision="bf16", loads=40, models=2, error=0.1, gpus=(1, 8), concurrency=(4, 64),
    prompt=(512, 2048), generated=(128, 1024), parameters=(8e9, 7.1e10),
)  # fmt: skip


def of(*boxes: ServedRuns, **changes: Any) -> Scenario:
    found = scenario(**changes)
    return found.model_copy(update={"software": found.software.model_copy(update={"served": boxes})})


def test_a_row_inside_has_the_error_of_its_box() -> None:
    found = trust(of(BOX), engines({"tp": 4, "concurrency": 32}))
    assert found.expected_error.tolist() == pytest.approx([0.1])
    assert found.outside.tolist() == [-1]


@pytest.mark.parametrize(
    ("changes", "row", "name", "units", "text"),
    [
        ({}, {"concurrency": 256}, "concurrency", 2.0, "concurrency (measured: 4 to 64)"),
        ({"hw": "b200"}, {"concurrency": 32}, "architecture", 1.0, "hw (measured: h100)"),
        ({"hw": "h200"}, {"concurrency": 32}, "chip", 1.0, "hw (measured: h100)"),
        ({"workload__precision": "fp8"}, {"concurrency": 32}, "precision", 1.0, "precision (measured: bf16)"),
        ({"workload__prompt_len": 8192}, {"concurrency": 32}, "prompt", 2.0, "prompt length (measured: 512 to 2,048)"),
    ],
)
def test_a_setting_outside_widens_it_and_is_named(
    changes: dict[str, Any], row: dict[str, float], name: str, units: float, text: str
) -> None:
    found = trust(of(BOX, **changes), engines({"tp": 1, **row}))
    expected = np.sqrt(0.1**2 + (SERVED_STEPS[name] ** 2 + 0.01**2) * units**2)
    assert found.expected_error[0] == pytest.approx(expected)
    assert found.texts[found.outside[0]] == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"hw": "mi300x"}, "hw (measured: h100)"), ({"workload__precision": "int4"}, "precision (measured: bf16)")],
    ids=["a maker's chips that no load ran on", "a precision that no load had"],
)
def test_nothing_is_expected_where_no_step_was_learned(changes: dict[str, Any], text: str) -> None:
    found = trust(of(BOX, **changes), engines({"tp": 1, "concurrency": 32}))
    assert np.isnan(found.expected_error).all()
    assert found.texts[found.outside[0]] == text


def test_of_boxes_that_all_lack_a_chip_the_nearest_in_the_rest_is_named() -> None:
    """Neither box has an MI300X; the first has the precision too little."""
    found = trust(of(BOX.model_copy(update={"precision": "fp8"}), BOX, hw="mi300x"), engines({"tp": 1, "concurrency": 32}))
    assert np.isnan(found.expected_error[0])
    assert found.texts[found.outside[0]] == "hw (measured: h100)"


def test_what_is_not_offered_is_said_of_a_row_that_lies_inside() -> None:
    row = engines({"tp": 2, "num_gpus": 2, "concurrency": 8})
    inside = BOX.model_copy(update={"parameters": (1e9, 1e11)})
    said = judged(of(inside, software__offers__parallelisms=["pp"]), row, {})
    assert judged(of(inside), row, {}).texts == ()
    assert (said.texts, said.outside.tolist()) == (("tp > 1: not offered by vllm",), [0])


def test_prompts_that_are_let_go_sooner_than_priced_widen_the_error_and_are_named() -> None:
    """With fewer than two requests on each of eight attention ranks, of lengths of their own: with 12 nearly half of a token's time, as the
    discrete engine has it (tests/test_discrete_serving.py), with 24 none."""
    changes = {"workload__prompt_len": 7000, "workload__decode_len": 127, "workload__precision": "fp8", "model__num_hidden_layers": 13}
    for software, spread, widened in (("tensorrt_llm", 0.2, True), ("tensorrt_llm", 0.0, False), ("sglang", 0.2, False)):
        trial = scenario("h200", "deepseek_v3", software, workload__length_spread=spread, **changes)
        rows = [{"num_gpus": 8, "tp": 1, "attention_dp": 8, "ep": 8, "concurrency": running} for running in (12, 24)]
        found, plain = judged(trial, engines(*rows), vars(priced(trial, *rows))), trust(trial, engines(*rows))
        told = [code >= 0 and "prompts are let go sooner than priced" in found.texts[code] for code in found.outside]
        assert told == [widened, False]
        assert found.expected_error[1] == plain.expected_error[1]
        assert found.expected_error[0] ** 2 - plain.expected_error[0] ** 2 == pytest.approx(0.45**2 * widened, rel=0.3, abs=1e-12)


def test_the_nearest_box_counts_and_pools_are_a_kind_of_their_own() -> None:
    pools = BOX.model_copy(update={"pools": True, "error": 0.3})
    rows = [{"tp": 1, "concurrency": 32}, {"num_gpus": 2, "prefill_tp": 1, "decode_tp": 1, "concurrency": 32}]
    rows[1] |= {"prefill_workers": 1, "decode_workers": 1}
    found = trust(of(BOX, pools), engines(*rows))
    assert found.expected_error.tolist() == pytest.approx([0.1, 0.3])


def test_a_row_is_judged_alike_alone_and_in_a_table() -> None:
    near = BOX.model_copy(update={"concurrency": (128, 512), "error": 0.2})
    rows: list[dict[str, float]] = [{"tp": tp, "concurrency": load} for tp in (1, 4, 16) for load in (1, 32, 100, 256, 4096)]
    whole = trust(of(BOX, near), engines(*rows))
    told = [None if place < 0 else whole.texts[place] for place in whole.outside]
    for row, error, text in zip(rows, whole.expected_error, told, strict=True):
        alone = trust(of(BOX, near), engines(row))
        assert alone.expected_error.tolist() == [error]
        assert (alone.texts or (None,)) == (text,)
    assert len(set(told)) > 3


def test_nothing_is_expected_where_no_request_was_measured() -> None:
    found = trust(of(), engines({"tp": 1, "concurrency": 32}))
    assert np.isnan(found.expected_error).all()
    assert "no request served by vllm was measured" in found.texts[found.outside[0]]


def test_shipped_profiles_know_their_loads_and_expect_an_error_of_each_row() -> None:
    for software in ("vllm", "sglang", "tensorrt_llm", "nim"):
        known = scenario(software=software)
        assert known.software.served
        assert np.isfinite(trust(known, engines({"tp": 1, "concurrency": 32})).expected_error).all()


def test_boxes_hold_two_thirds_of_the_loads_that_they_sum_up() -> None:
    rng = np.random.default_rng(0)
    settings = pd.DataFrame(
        {
            "chip": "h100", "architecture": "hopper", "precision": "fp8", "experts": False, "latent": False, "pools": False, "gpus": 8.0,
            "sent": "mixed", "concurrency": [np.nan, *range(1, 200)], "prompt": 1024.0, "generated": 512.0, "parameters": 7e10,
        }
    )  # fmt: skip
    errors = rng.normal(0, 0.1, 200)
    alike: dict[Sent, float] = {"mixed": 0.0994}  # what 68 % of a normal distribution of this width lie within
    (box,) = served_boxes(settings, ["one", "two"] * 100, errors, np.ones(200, bool), alike)
    assert (np.abs(errors) <= box.errors["mixed"]).mean() == pytest.approx(0.68, abs=0.02)
    assert (box.loads, box.models, box.concurrency) == (200, 2, (1.0, 199.0))


def test_models_count_alike_however_many_loads_each_has_and_lean_on_what_is_typical() -> None:
    """Two models, 10 % off in 40 loads and 20 % in 8: of both alike 68 % lie within 20 %, which as two models leans on three of 10 %."""
    settings = pd.DataFrame(
        {
            "chip": "h100", "architecture": "hopper", "precision": "fp8", "experts": False, "latent": False, "pools": False, "gpus": 8.0,
            "concurrency": 8.0, "prompt": 1024.0, "generated": 512.0, "parameters": 7e10, "sent": ["mixed"] * 48,
        }
    )  # fmt: skip
    errors, models = np.array([0.1] * 40 + [-0.2] * 8), ["one"] * 40 + ["other"] * 8
    (box,) = served_boxes(settings, models, errors, np.ones(48, bool), {"mixed": 0.1})
    assert box.errors == {"mixed": pytest.approx((0.2**2 * 0.1**3) ** 0.2, rel=0.01)}


def test_a_row_has_the_error_of_loads_whose_requests_came_as_its_own() -> None:
    known = of(BOX.model_copy(update={"errors": {"mixed": 0.08, "one_length": 0.16}}))
    several = known.model_copy(update={"workload": known.workload.model_copy(update={"length_spread": 0.2})})
    for asked, rows, error in (
        (known, {"concurrency": 32}, 0.16),
        (several, {"concurrency": 32}, 0.08),
        (known, {"request_rate": 0.01}, 0.08),  # so few that none meets another
    ):
        told = trust(asked, engines({"tp": 1, **rows}))
        assert (told.expected_error[0], told.outside[0]) == (pytest.approx(error, rel=0.01), -1)
    # no static batch: as much less than is typical of them as the others are, by 0.08 and by 0.16
    less = np.sqrt(0.08 / SERVED_ERRORS["mixed"] * 0.16 / SERVED_ERRORS["one_length"])
    assert trust(known, engines({"tp": 1, "batch_size": 4})).expected_error[0] == pytest.approx(SERVED_ERRORS["batch"] * less)


def test_nothing_is_expected_of_drafts_since_no_load_told_how_many_were_accepted() -> None:
    found = trust(of(BOX, workload__draft_tokens=1, workload__draft_acceptance=0.8), engines({"tp": 1, "concurrency": 32}))
    assert np.isnan(found.expected_error[0])
    assert found.texts == ("draft_tokens (measured: without)",)


@pytest.fixture(scope="module")
def served_table() -> pd.DataFrame:
    """Requests as vLLM's profile serves them, with the errors of an imagined clock."""
    rows = [(model, tp, load) for model in ("llama3_1_8b", "llama3_1_70b") for tp in (4, 8) for load in (4, 16, 64)]
    found = []
    for model in ("llama3_1_8b", "llama3_1_70b"):
        made = priced(scenario(model=model), *({"tp": tp, "num_gpus": tp, "concurrency": load} for name, tp, load in rows if name == model))
        found += list(zip(made.tpot_s, made.ttft_s, made.request_latency_s, strict=True))
    tpot, ttft, latency = np.array(found).T
    keys = {"hw": "h100", "software": "vllm", "workload": "inference", "suite": "made", "model": [model for model, _, _ in rows]}
    keys |= {"hw.num_gpus": [tp for _, tp, _ in rows], "parallel.tp": [tp for _, tp, _ in rows]}
    keys |= {"workload.concurrency": [load for _, _, load in rows]}
    measured = {"tpot_s": tpot * np.where(np.arange(12) % 2, 1.02, 0.98), "ttft_s": ttft, "request_latency_s": latency}
    return pd.DataFrame(keys | {f"measured.{name}": column for name, column in measured.items()})


def test_validate_tells_of_requests_suite_by_suite(tmp_path: Path, served_table: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    served_table.to_csv(tmp_path / "requests.csv", index=False)
    assert validate.main([str(tmp_path / "requests.csv"), "--out", str(tmp_path / "out"), "--json"]) == 0
    shipped, unseen = json.loads(capsys.readouterr().out)["tables"][0]["suites"]
    assert shipped["tpot"] == pytest.approx(0.02, rel=0.01)
    assert shipped["ttft"] == pytest.approx(0.0, abs=1e-9)
    assert unseen["tpot"] < 0.1
    assert shipped["within"] == 1.0
    worst = pd.read_csv(tmp_path / "out" / "worst_made.csv")
    terms = worst[[name for name in worst if name.endswith("_s") and not name.startswith("measured.")]]
    np.testing.assert_allclose(terms.sum(axis=1), worst["measured.tpot_s"] * (1 + worst["told"]), rtol=1e-3)


def test_calibrate_finds_what_made_the_requests(
    tmp_path: Path, served_table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    served_table.to_csv("requests.csv", index=False)
    assert calibrate.main(["requests.csv", "--software", "vllm", "--out", "mine", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["mean_error"] < 0.05
    assert (told["runs"], told["models"]) == (12, 2)
    profile = yaml.safe_load((tmp_path / "conf/software/mine.yaml").read_text())
    assert profile["serving"]["layer_latency"] == pytest.approx(2.4e-5, rel=0.5)
    assert [box["loads"] for box in profile["served"]] == [12]


def test_a_model_that_was_measured_lies_inside_whatever_its_size_was_rounded_to() -> None:
    """Llama 70B has 70,553,706,496 parameters; profiles' files have ten digits of it."""
    rounded = BOX.model_copy(update={"precision": "fp8", "parameters": (7.05537065e10, 7.05537065e10)})
    found = trust(of(rounded, model="llama3_1_70b", workload__precision="fp8"), engines({"tp": 4, "concurrency": 32}))
    assert found.outside.tolist() == [-1]


def slower(of: Scenario, times: float) -> Scenario:
    """The same scenario where all that one GPU, its host and its framework do takes so many times as long."""
    hw, software = of.hw, of.software
    stores = {name: getattr(hw, name) for name in ("registers", "shared_memory", "l2", "memory")}
    stores = {name: store.model_copy(update={"bandwidth": store.bandwidth / times}) for name, store in stores.items()}
    chip = hw.model_copy(update=stores | {"clock": hw.clock / times, "kernel_latency": hw.kernel_latency * times})
    latencies = ("layer_latency", "quantize_latency", "step_latency", "sequence_latency", "admission_latency")
    serving = software.serving.model_copy(update={name: getattr(software.serving, name) * times for name in latencies})
    host = software.host.model_copy(update={"host_layer": software.host.host_layer * times})
    return of.model_copy(update={"hw": chip, "software": software.model_copy(update={"serving": serving, "host": host})})


def test_an_error_of_steps_grows_with_the_rate_as_on_a_machine_that_is_slower() -> None:
    """A machine of which all takes one percent longer: in closed loops tokens come one percent later, in open ones more, by its rate."""
    rows: list[dict[str, float]] = [{"concurrency": 16}, *({"request_rate": rate} for rate in (0.5, 2, 4))]
    later = priced(slower(scenario(), 1.01), *rows).tpot_s / priced(scenario(), *rows).tpot_s
    told = trust(of(BOX), engines(*rows)).expected_error / trust(of(BOX), engines(rows[0])).expected_error
    np.testing.assert_allclose(np.log(later) / np.log(1.01), told, rtol=0.01)
    assert told[-1] > 1.9


def test_the_first_token_has_an_error_of_its_own_beside_it() -> None:
    """First tokens of unseen models are 28 % off on average, in the median 19 %, of pools twice as much (docs/validation.md)."""
    row = {"ttft_s": 0.25, "tpot_s": 0.02, "expected_error": 0.1}
    one, pools = (show.first_token_text(row | more) for more in ({}, {"parallel.prefill.workers": 2}))
    told = [int(text.removeprefix("250.0 ms ±").removesuffix(" %")) for text in (one, pools)]
    assert 19 < told[0] < 45 < told[1] < 75
    assert show.first_token_text(row | {"tpot_s": None}) == "250.0 ms ±10 %"  # of one token alone: the request is the first token
    assert show.first_token_text(row | {"expected_error": None}) == "250.0 ms ?"
