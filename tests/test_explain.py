"""python -m rapid_dse.explain: terms, neighbours, turning points, other machines, operators."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving_trials
from hypothesis import given, settings
from hypothesis import strategies as st
from program import done, one_line, run
from trials import layouts, random_layouts, scenario

from rapid_dse.analysis.reasons import chosen
from rapid_dse.analysis.reasons.chosen import PricedTrial, trial
from rapid_dse.analysis.reasons.differences import difference
from rapid_dse.analysis.reasons.levers import EvenSteps, FourDigits, levers
from rapid_dse.analysis.reasons.neighbours import neighbours
from rapid_dse.analysis.reasons.operator_roofline import operators_of
from rapid_dse.analysis.reasons.turning_points import turning_points
from rapid_dse.events.backends import price
from rapid_dse.sweep.compose import hydra_ready
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.space import plan, single

SPACE = ("model=llama3_1_8b", "hw.num_gpus=64", "workload.global_batch_size=256", "parallel.tp=1,2,4,8", "parallel.pp=1,2,4")
GRID = (*SPACE, "parallel.zero=1,3", "parallel.recompute=none,full", "software.enforce=false", "software.host_step=0.02")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small study."""
    where = tmp_path_factory.mktemp("explain")
    done(where, "-m", *GRID, "search.study=small")
    return where


@cache
def told(folder: Path, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done(folder, "results/small", "--json", *arguments, module="rapid_dse.explain").out)
    return found


def swapped(folder: Path) -> dict[str, Any]:
    """The second row of the study against its best, which are named by the start of a key and by a whole one."""
    best = told(folder)
    return told(folder, "--no-sensitivity", "--key", best["against"]["key"][:10], "--key", best["of"]["key"])


def composed(*overrides: str) -> dict[str, float]:
    """What one trial gives, composed from overrides alone."""
    with hydra_ready():
        found = single(read(overrides))
    return chosen.figures_of(price(found.scenario, found.layouts))


def overrides(settings_: Mapping[str, Any]) -> list[str]:
    kept = {key: value for key, value in settings_.items() if value is not None and key != "backend"}
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in kept.items()]


@cache
def of_8b() -> Any:
    return scenario(model="llama3_1_8b")


def pair(first: int, second: int) -> tuple[PricedTrial, PricedTrial]:
    table = random_layouts(of_8b(), 64, 256, 40, seed=3)
    one, other = (trial(of_8b(), table.take(np.array([at]))) for at in (first, second))
    return one, other


@settings(max_examples=15, deadline=None)
@given(st.tuples(st.integers(0, 39), st.integers(0, 39)))
def test_the_terms_of_a_difference_add_up_to_it(rows: tuple[int, int]) -> None:
    one, other = pair(*rows)
    found = difference(one, other)
    for each, name in ((found.time, "step_time_s"), (found.memory, "peak_memory_bytes")):
        whole = one.figures[name] - other.figures[name]
        assert sum(term.difference for term in each.terms) == pytest.approx(whole, rel=1e-6, abs=1e-9 * one.figures[name])
        sizes = [abs(term.difference) for term in each.terms]
        assert sizes == sorted(sizes, reverse=True)


def test_what_differs_is_named() -> None:
    one, other = (trial(of_8b(), layouts(row)) for row in ({"tp": 8, "zero": 1}, {"tp": 4, "zero": 1}))
    assert difference(one, other).settings == {"parallel.tp": (8, 4), "parallel.dp": (8, 16)}
    slow = trial(scenario(model="llama3_1_8b", workload__precision="fp16"), layouts({"tp": 8}))
    assert difference(slow, one).settings == {"workload.precision": ("fp16", "bf16")}


def test_neighbours_are_what_a_trial_with_that_one_key_changed_gives(folder: Path) -> None:
    found = told(folder)
    base = {key: value for key, value in found["of"]["settings"].items() if key not in ("parallel.dp", "parallel.schedule")}
    keys = {each["key"] for each in found["neighbours"]}
    assert {"parallel.tp", "parallel.pp", "parallel.zero", "parallel.recompute", "parallel.micro_batch_size"} <= keys
    for each in found["neighbours"]:
        if each["key"] in ("parallel.schedule", "parallel.sequence_parallel", "parallel.shard_group"):
            continue
        changed = base | {each["key"]: each["value"]}
        if each["key"] in ("parallel.tp", "parallel.pp"):
            changed["parallel.sequence_parallel"] = changed["parallel.tp"] > 1
        if each["key"] == "parallel.pp":
            changed["parallel.vpp"] = 1
        alone = composed(*overrides(changed))
        assert each["step_time_s"] == pytest.approx(alone["step_time_s"], rel=1e-12), each
        assert each["more_step_time_s"] == pytest.approx(alone["step_time_s"] - found["of"]["step_time_s"], abs=1e-9)
        assert each["more_peak_memory_bytes"] == pytest.approx(alone["peak_memory_bytes"] - found["of"]["peak_memory_bytes"], abs=1)


def test_a_node_wide_group_has_neighbours_on_both_sides() -> None:
    found = {(each.key, each.value) for each in neighbours(trial(of_8b(), layouts({"tp": 4, "pp": 2, "vpp": 2})))}
    assert {("parallel.tp", 2), ("parallel.tp", 8), ("parallel.pp", 1), ("parallel.pp", 4), ("parallel.cp", 2)} <= found
    assert ("parallel.vpp", 1) in found
    assert ("parallel.vpp", 3) in found


def ahead(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    return first["step_time_s"] < second["step_time_s"] if first["fits"] == second["fits"] else bool(first["fits"])


def test_settings_give_the_row_again(folder: Path) -> None:
    """With every key that the study set beside the layout: what the host takes, and layouts that the framework does not offer."""
    found = told(folder)["of"]
    assert (found["settings"]["software.host_step"], found["settings"]["software.enforce"]) == (0.02, False)
    again = composed(*overrides(found["settings"]))
    assert (again["step_time_s"], again["peak_memory_bytes"]) == (found["step_time_s"], found["peak_memory_bytes"])


def test_set_to_its_turning_point_the_order_is_the_other_one_and_a_step_before_it_is_not(folder: Path) -> None:
    found = swapped(folder)
    sides = [overrides(found[name]["settings"]) for name in ("of", "against")]
    now = ahead(*(composed(*each) for each in sides))
    assert found["turning_points"]
    assert {"hw.network.dimensions.0.bandwidth", "hw.network.dimensions.1.bandwidth"} & {each["key"] for each in found["turning_points"]}
    for point in found["turning_points"][:6]:  # each is composed four times
        order = []
        for value in (point["value"], point["before"]):
            whole = int(value) if point["key"].startswith("workload.") else repr(value)
            turned = [f"{point['key']}={whole}"] + ([f"hw.memory.capacity={whole}"] if point["key"] == "hw.memory.usable" else [])
            kept = [[text for text in side if text.split("=")[0] != point["key"]] for side in sides]
            order.append(ahead(*(composed(*each, *turned) for each in kept)))
        assert order == [not now, now], point


def test_where_both_wait_for_the_host_the_order_has_not_turned() -> None:
    """What the host takes hides what ZeRO 3 gathers beyond ZeRO 2: both become as slow, and neither is ahead."""
    job = ("software=torchtitan", "hw=h200", "hw.num_gpus=256", "model=llama3_1_8b", "workload.global_batch_size=256")
    slow = [composed(*job, f"parallel.zero={zero}", "parallel.recompute=none", "software.host_layer=0.03") for zero in (2, 3)]
    assert slow[0]["step_time_s"] == slow[1]["step_time_s"]
    with hydra_ready():
        found = [single(read([*job, f"parallel.zero={zero}", "parallel.recompute=none"])) for zero in (2, 3)]
    points = turning_points(*(trial(each.scenario, each.layouts) for each in found))
    assert points
    assert "software.host_layer" not in [point.key for point in points]


def only(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the numbers of chip, cluster and framework this one alone is turned."""
    monkeypatch.setattr("rapid_dse.analysis.reasons.turning_points.levers", lambda of: [each for each in levers(of) if each.key == key])


def test_the_price_at_which_another_chip_is_cheaper_is_the_ratio_of_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    only("hw.price", monkeypatch)
    one = trial(scenario(hw="a100"), layouts({"tp": 4}))
    other = trial(scenario(hw="h100"), layouts({"tp": 4}))
    points = {(each.key, each.of): each for each in turning_points(one, other, "cost_usd")}
    exact = other.figures["cost_usd"] / (one.scenario.hw.price / 3600 * 64 * one.figures["step_time_s"]) * one.scenario.hw.price
    found = points["hw.price", "first"]
    low, high = sorted((found.value, found.before))
    assert low <= exact <= high
    assert high / low - 1 <= 1e-3


def test_a_layout_that_does_not_fit_is_ahead_once_memory_holds_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    only("hw.memory.usable", monkeypatch)
    one, other = (trial(of_8b(), layouts({"tp": tp, "micro_batch_size": 2, "recompute": "none"})) for tp in (1, 4))
    assert (one.fits, other.fits) == (False, True)
    assert one.figures["step_time_s"] < other.figures["step_time_s"]
    found = next(each for each in turning_points(one, other) if each.key == "hw.memory.usable" and each.value > each.now)
    tenths = np.ceil(one.figures["peak_memory_bytes"] / 2**30 * 10)
    assert found.value == pytest.approx(tenths / 10 * 2**30, rel=1e-12)
    assert found.before == pytest.approx((tenths - 1) / 10 * 2**30, rel=1e-12)


@given(st.floats(1e-9, 1e15))
def test_the_values_of_a_grid_lie_around_a_number(value: float) -> None:
    for grid in (FourDigits(), EvenSteps(0.001), EvenSteps(128)):
        if isinstance(grid, EvenSteps) and value / grid.step > 1e9:
            continue
        below, above = grid.around(value)
        assert grid.value(below) < value < grid.value(above)
        assert above - below in (1, 2)
        if above - below == 2:
            assert grid.value(below + 1) == pytest.approx(value, rel=1e-6)
    below, _ = FourDigits().around(value)
    assert float(f"{FourDigits().value(below):.3e}") == FourDigits().value(below), "four digits say it all"


def test_the_winner_on_another_machine_is_the_best_of_all_rows_there(folder: Path) -> None:
    found = told(folder)
    shifts = {(each["what"], each["factor"]): each for each in found["sensitivity"]["shifts"]}
    assert len(shifts) == 14
    for what, factor, changed in (
        ("arithmetic", 2.0, "hw.clock=3.66 GHz"),
        ("bandwidth of NVLink", 0.5, "hw.network.dimensions.0.bandwidth=225 GB/s"),
        ("usable memory", 0.5, "hw.memory.usable=39.2 GiB"),
    ):
        with hydra_ready():
            portions = plan(read([*GRID, changed])).portions
        best = np.inf
        for portion in portions:
            legal = portion.layouts.take(np.flatnonzero(portion.rule < 0))
            priced = price(portion.scenario, legal)
            best = min(best, float(np.min(priced.step_time_s[priced.fits], initial=np.inf)))
        shift = shifts[what, factor]
        assert shift["value"] == pytest.approx(best, rel=1e-12), what
        stayed = shift["value_of_the_present_winner"]
        assert stayed is None or shift["gain"] == pytest.approx(1 - shift["value"] / stayed, abs=1e-12)
    assert shifts["usable memory", 0.5]["gain"] is None, "the winner of now does not fit there"
    assert shifts["price", 2.0]["value"] == pytest.approx(4 * shifts["price", 0.5]["value"], rel=1e-9)


def test_operators_stand_on_the_roofline_of_the_chip() -> None:
    found = {each.name: each for each in operators_of(trial(of_8b(), layouts({"micro_batch_size": 1})))}
    tokens, hidden, wide = 8192, 4096, 14336
    down = found["mlp_down"]
    assert down.flops == 3 * 2 * tokens * wide * hidden
    assert down.bytes == 3 * 2 * (tokens * wide + wide * hidden + tokens * hidden)
    assert down.bound == "compute"
    assert found["small kernels"].bound == "HBM"
    for each in found.values():
        assert 0 < each.reached <= 1, each
    tiny = {each.name: each for each in operators_of(trial(scenario(model="llama3_1_8b", workload__seq_len=128), layouts({"tp": 8})))}
    assert tiny["qkv"].bound == "launch"


def test_operators_of_an_encoder_are_those_of_its_pass_forward() -> None:
    """ViT-Large, 64 images of 197 tokens of 1,024 numbers: each product once, all tokens seen by all."""
    encoder = trial(serving_trials.scenario("h100", "vit_large", "pytorch"), serving_trials.engines({"batch_size": 64}))
    found = {each.name: each for each in operators_of(encoder)}
    tokens = 64 * 197
    assert found["mlp_up"].flops == 2 * tokens * 1024 * 4096
    assert found["attention"].flops == pytest.approx(4 * tokens * 197 * 1024)
    assert 24 * sum(each.seconds for each in found.values()) == pytest.approx(encoder.figures["step_time_s"], rel=0.15)
    assert not {"absorb_keys", "head"} & found.keys()


def test_a_key_may_be_shortened_and_what_is_wrong_is_one_line(folder: Path) -> None:
    best, shortened = told(folder), swapped(folder)
    key = best["against"]["key"]
    assert (shortened["of"]["key"], shortened["against"]["key"]) == (key, best["of"]["key"])
    assert not shortened.get("sensitivity")
    module = {"module": "rapid_dse.explain"}
    assert "no row has it" in one_line(run(folder, "results/small", "--key", "xyz", **module))
    assert "rows start so" in one_line(run(folder, "results/small", "--key", "", **module))
    assert "the same row" in one_line(run(folder, "results/small", "--key", key, "--key", key, **module))
    assert "no column of numbers" in one_line(run(folder, "results/small", "--by", "speed", **module))
    assert "such file" in one_line(run(folder, "results/none", **module))


def test_the_text_says_what_the_json_says(folder: Path) -> None:
    """Of one key, which is set against the best."""
    found = swapped(folder)
    out = done(folder, "results/small", "--key", found["of"]["key"], module="rapid_dse.explain").out
    assert f"{found['of']['key'][:12]}: " in out
    assert found["against"]["key"][:12] in out
    assert "what would turn the order round" in out
    assert "one change" in out
    assert "on another machine" in out
    assert ("slower" if found["difference"]["step_time_s"]["difference"] > 0 else "faster") in out


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small study of inference."""
    where = tmp_path_factory.mktemp("serving")
    job = ("workload=inference", "model=llama3_1_8b", "hw.num_gpus=8", "workload.concurrency=32")
    done(where, "-m", *job, "parallel.tp=1,2,4,8", "search.study=small")
    return where


def test_the_terms_of_a_decode_step_are_explained(serving: Path) -> None:
    found = told(serving, "--no-sensitivity")
    for side in ("of", "against"):
        assert sum(found[side]["time_s"].values()) == pytest.approx(found[side]["step_time_s"], rel=1e-9)
    assert "prefill" in found["of"]["time_s"]
    changed = {(each["key"], each["value"]): each for each in found["neighbours"]}
    assert changed
    assert next(iter(changed))[0] in ("parallel.tp", "parallel.pp", "parallel.attention_dp")
    tp, rows = found["of"]["settings"]["parallel.tp"], {each["name"]: each for each in found["operators"]}
    # At most 32 requests run, tp eighths of them on each engine, most of the time; two FLOP a weight and token, two bytes a weight.
    weights, most = 4096 * 14336 / tp, 32 * tp / 8
    assert 2 * weights * most / 2 < rows["mlp_down"]["flops"] <= 2 * weights * most
    assert 2 * weights < rows["mlp_down"]["bytes"] < 2.2 * weights
    assert rows["mlp_down"]["bound"] == "HBM", "so few tokens wait for the weights"


def test_the_order_of_two_engines_turns_where_it_is_said_to(serving: Path) -> None:
    found = told(serving, "--no-sensitivity")
    sides = [overrides(found[name]["settings"]) for name in ("of", "against")]
    job = ["workload=inference", "workload.concurrency=32"]

    def priced(side: list[str], *turned: str) -> dict[str, float]:
        kept = [text for text in side if not text.startswith("workload.concurrency")]
        with hydra_ready():
            one = single(read([*job, *kept, *turned]))
        return chosen.figures_of(price(one.scenario, one.layouts))

    now = ahead(*(priced(each) for each in sides))
    assert found["turning_points"]
    for point in found["turning_points"][:4]:
        order = []
        for value in (point["value"], point["before"]):
            turned = f"{point['key']}={int(value) if point['key'].startswith('workload.') else repr(value)}"
            order.append(ahead(*(priced(each, turned) for each in sides)))
        assert order == [not now, now], point
