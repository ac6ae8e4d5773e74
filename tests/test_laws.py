"""Laws of all kinds of work on all backends, on layouts drawn at random; docs/physics.md has the exceptions with their reasons."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from collective_order import disorder
from generated import ONE
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from law_cases import BACKENDS, FASTER, HIERARCHICAL, HYBRID, KINDS, SERVING, Trial, trials
from law_work import MORE, changes_gradients, keeps_its_split, least_seconds
from numpy.typing import NDArray

from rapid_dse.config.run import RECOMPUTE
from rapid_dse.events.runs import Run, own_streams
from rapid_dse.model.parameters import count
from rapid_dse.parallel.enumeration import grid
from rapid_dse.parallel.schedules import RUNS_ON, SPLITS_BACKWARD
from rapid_dse.simulate.results import Priced, unlawful

MOST = settings.default.max_examples // 40
FEWER = settings(max_examples=max(1, MOST), derandomize=MOST <= 1, suppress_health_check=list(HealthCheck), deadline=None)
ROUNDING = 1e-9
NANOSECOND = 2e-9 * 4000  # the event engine counts in whole ones: of the nodes of a rank here
SHOWN = 1e-5  # of split backward passes: what shows of gradients where another stage than the first, which hides them, sets the pace
IN_GRAPHS = 1e-2  # of split backward passes where the host has no timeline of its own, or stages run on behind the graph's one step
CONTENDED = 5e-3  # on networks that carry other transfers beside it: at most 0.4 % in 2,840 steps that the host paces or nearly does
LAST_BUCKET = 5e-3  # what a bucket more of gradients takes off the last one, which nothing hides
CROWDED = 0.06  # of thousands of requests at once, behind prompts of one or two tokens: other numbers of them share a pass
LAUNCHED_AGAIN = 1e-2  # of full recomputation where gradients hide behind the host's last backward pass: at most 0.8 % in 3,000 cases
ENDING = 2e-3  # of requests whose run begins and ends at other moments of their steps
EACH = [(kind, backend) for kind in KINDS for backend in BACKENDS]


def _slack(kind: str, backend: str, trial: Trial) -> NDArray[np.float64]:
    """By how much more a step may take on a machine that is faster, or with less work, ``(n,)``."""
    slack = np.full(len(trial.layouts), CONTENDED if backend != "analytical" else ENDING if kind in SERVING else ROUNDING)
    if not kind.endswith("forward") and kind not in SERVING:
        schedule = trial.layouts.schedule
        closed = backend in ("analytical", HYBRID)
        in_graphs = np.where(RUNS_ON.take(schedule) | (not own_streams(trial.scenario().backend)), IN_GRAPHS, 0.0) * (not closed)
        slack = slack + SPLITS_BACKWARD.take(schedule) * (in_graphs + SHOWN)
    return slack


@pytest.mark.parametrize(("kind", "backend"), EACH)
@FEWER
@given(st.data())
def test_results_are_finite_add_up_and_hold_the_model(kind: str, backend: str, data: Any) -> None:
    """Finite numbers of the right sign, terms that add up, no more FLOP/s than the chips have, and no less memory than the parameters;
    graphs whose ranks take part in collectives in one order."""
    trial: Trial = data.draw(trials(kind, backend))
    runs: dict[str, Run] = {}
    found, scenario = trial.price(None if backend == "analytical" else runs.update), trial.scenario()
    assert [fault for run in runs.values() for fault in disorder(run.traced)] == []
    assert unlawful(found) == []
    assert (found.mfu <= 1).all()
    if kind in SERVING or not kind.endswith("forward"):
        assert (found.step_time_s >= least_seconds(trial, found)).all()
    if kind not in SERVING:  # where attention's ranks share an engine's other products
        degrees = {term: getattr(trial.layouts, term) for term in ("tp", "cp", "pp", "ep")} | {"dp": trial.layouts.dp * trial.layouts.cp}
        if kind == "experts":  # ranks that hold the same experts, where these have a grid of their own
            degrees["dp"] = np.maximum(degrees["dp"], trial.layouts.expert_copies)
        assert [term for term, degree in degrees.items() if getattr(found, f"time_{term}_s")[degree == 1].any()] == []
    if kind in ("text", "experts"):  # the fullest stage's GPUs hold no less than the mean, an 8-bit copy of each parameter at least
        assert (found.peak_memory_bytes * trial.layouts.num_gpus >= count(scenario.model).total).all()


@pytest.mark.parametrize("kind", KINDS)
@FEWER
@given(st.data())
def test_a_row_is_the_same_in_any_company(kind: str, data: Any) -> None:
    """Bit for bit: alone, in another order, in parts."""
    trial: Trial = data.draw(trials(kind, "analytical"))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    whole, order, cut = trial.price(), rng.permutation(len(trial.layouts)), rng.integers(0, len(trial.layouts) + 1)
    parts = [order[:cut], order[cut:], order[:1]]
    again = Priced.concatenate([trial.rows(part).price() for part in parts if len(part)])
    for field in fields(Priced):
        expected = getattr(whole, field.name)[np.concatenate(parts)]
        np.testing.assert_array_equal(getattr(again, field.name), expected, err_msg=field.name)


@pytest.mark.parametrize(("kind", "backend"), [each for each in EACH if each[0] not in SERVING])
@FEWER
@given(st.data(), st.sampled_from(sorted(FASTER)))
def test_a_faster_machine_is_never_slower(kind: str, backend: str, data: Any, faster: str) -> None:
    trial: Trial = data.draw(trials(kind, backend))
    better = trial.with_values(FASTER[faster](trial.scenario()))
    assume(better.legal().all())
    slow, fast = trial.price().step_time_s, better.price().step_time_s
    slack = _slack(kind, backend, trial)
    assert (fast <= slow * (1 + slack) + (backend != "analytical") * NANOSECOND).all(), (faster, trial)


@pytest.mark.parametrize(("zero", "recompute"), [(2, "none"), (3, "full")])
def test_ranks_that_reach_collectives_in_different_orders_do_not_wait_for_each_other(zero: int, recompute: str) -> None:
    """The table's gradient is reduced beside those of layers: on links that cut messages, one rank begins the one before the other, its
    neighbour after it."""
    small = {"num_attention_heads": 7, "num_key_value_heads": 7, "hidden_size": 448, "head_dim": 64, "num_hidden_layers": 3}
    small |= {"intermediate_size": 896, "vocab_size": 1000}
    values = {f"model.{key}": value for key, value in small.items()} | {"backend.name": HIERARCHICAL, "backend.network": "fair"}
    values |= {"software.enforce": False, "software.cuda_graphs": "full_iteration", "workload.seq_len": 1024}
    options = (("hw", "a100_pcie"), ("model", "llama"), ("software", "nanotron"), ("workload", "training"))
    row = {"num_gpus": 7, "global_batch_size": 14, "micro_batch_size": 2, "zero": zero, "recompute": RECOMPUTE.index(recompute)}
    trial = Trial("text", options, tuple(values.items()), grid(ONE | {name: [value] for name, value in row.items()}))
    assert trial.price().step_time_s[0] > 0


@pytest.mark.parametrize(
    ("kind", "backend"), [each for each in EACH if each[0] in MORE and (each[0] not in SERVING or each[1] == "analytical")]
)
@FEWER
@given(st.data())
def test_more_work_is_never_faster(kind: str, backend: str, data: Any) -> None:
    """Of training and single passes the step, of requests their time, unless fewer are served a second; exceptions: docs/physics.md."""
    name = data.draw(st.sampled_from(sorted(MORE[kind])))
    trial: Trial = data.draw(trials(kind, backend))
    more = MORE[kind][name](trial)
    rows = np.flatnonzero(more.legal() & keeps_its_split(trial, name))
    assume(len(rows) > 0)
    less, found = trial.rows(rows).price(), more.rows(rows).price()
    quantity = "request_latency_s" if kind in SERVING else "step_time_s"
    short, long = getattr(less, quantity), getattr(found, quantity)
    slack = _slack(kind, backend, trial.rows(rows)) + (LAST_BUCKET if changes_gradients(name) else 0.0)
    slack = slack + (CROWDED if name == "prompts" and trial.scenario().workload.lengths[0] <= 2 else 0.0)
    later = long >= short * (1 - slack) - (backend != "analytical") * NANOSECOND
    assert (later | (found.requests_per_s < less.requests_per_s)).all(), (name, trial)


@pytest.mark.parametrize("kind", ["text", "experts", "vision"])
@FEWER
@given(st.data())
def test_what_is_recomputed_takes_time_and_no_memory(kind: str, data: Any) -> None:
    """None, selective, full: longer each, and no more memory where a chunk has several layers (of one, full keeps the input as well)."""
    trial: Trial = data.draw(trials(kind, "analytical"))
    trial = trial.rows(np.flatnonzero(trial.layouts.pp * trial.layouts.chunks < trial.scenario().model.num_hidden_layers))
    assume(len(trial.layouts) > 0)
    found = [trial.with_columns(recompute=np.full(len(trial.layouts), mode)).price() for mode in range(len(RECOMPUTE))]
    for less, more in pairwise(found):
        assert (more.peak_memory_bytes <= less.peak_memory_bytes * (1 + ROUNDING)).all(), trial
        slack = np.maximum(_slack(kind, "analytical", trial), LAUNCHED_AGAIN)
        assert (more.step_time_s >= less.step_time_s * (1 - slack)).all(), trial


@pytest.mark.parametrize("kind", ["text", "experts", "vision"])
@FEWER
@given(st.data())
def test_a_higher_zero_stage_holds_no_more_but_what_it_gathers(kind: str, data: Any) -> None:
    trial: Trial = data.draw(trials(kind, "analytical"))
    stages = [trial.with_columns(zero=np.full(len(trial.layouts), zero)) for zero in range(4)]
    rows = np.flatnonzero(np.all([stage.legal() for stage in stages], axis=0))
    assume(len(rows) > 0)
    for less, more in pairwise(stage.rows(rows).price() for stage in stages):
        assert (more.peak_memory_bytes - more.memory_gathered_bytes <= less.peak_memory_bytes * (1 + ROUNDING)).all(), trial
