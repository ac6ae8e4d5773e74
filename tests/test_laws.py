"""Laws of all kinds of work on all backends, on layouts drawn at random; docs/physics.md has the exceptions with their reasons."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from collective_order import disorder
from generated import ONE
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from law_cases import BACKENDS, FASTER, HIERARCHICAL, KINDS, SERVING, Trial, trials

from rapid_dse.config.run import RECOMPUTE
from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.events.runs import Run
from rapid_dse.model.parameters import count
from rapid_dse.parallel.enumeration import grid
from rapid_dse.simulate.results import Priced, unlawful

MOST = settings.default.max_examples // 40
FEWER = settings(max_examples=max(1, MOST), derandomize=MOST <= 1, suppress_health_check=list(HealthCheck), deadline=None)
ROUNDING = 1e-9
NANOSECOND = 2e-9 * 4000  # the event engine counts in whole ones: of the nodes of a rank here
BY_SCHEDULE = {"zero_bubble": 1e-3, "zb_v": 1e-2, "zb_2p": 1e-2, "dualpipe_v": 2.5e-2}
CONTENDED = 1e-2  # on networks that carry other transfers beside it
EACH = [(kind, backend) for kind in KINDS for backend in BACKENDS]


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
    slack = np.full(len(slow), ROUNDING if backend == "analytical" else CONTENDED)
    if not kind.endswith("forward"):
        for name, more in BY_SCHEDULE.items():
            slack = np.where(trial.layouts.schedule == SCHEDULES.index(name), more + slack, slack)
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
