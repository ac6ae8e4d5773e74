"""A pipeline's step as lanes: by hand, beside the compiled recurrence for every schedule, and beside the step time of priced rows."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.parallel.lanes import BACKWARDS, FORWARDS, lanes_of
from rapid_dse.parallel.schedules import SCHEDULE_CLASSES
from rapid_dse.parallel.schedules.schedule import KINDS
from rapid_dse.simulate.training import pipeline_passes, price
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.space import single

CODE = {name: code for code, name in enumerate(SCHEDULES)}


def test_two_stages_of_two_chunks_by_hand() -> None:
    """The example of test_schedules: a layer takes 1 forward and 2 backward; chunks of 2, 2, 1 and 1 layers; micro-batches a and b."""
    layers = np.array([2.0, 2.0, 1.0, 1.0])
    lanes = lanes_of(CODE["interleaved_1f1b"], 2, 2, 2, np.stack([layers, 2 * layers]))
    spans = [list(zip(lane.begin.tolist(), lane.end.tolist(), strict=True)) for lane in lanes]
    assert spans[0] == [(0, 2), (2, 4), (4, 5), (6, 7), (9, 11), (12, 14), (16, 20), (20, 24)]
    assert spans[1] == [(2, 4), (4, 6), (6, 7), (7, 9), (9, 10), (10, 12), (12, 16), (16, 20)]
    assert lanes[0].order[1].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert (lanes[0].busy(FORWARDS), lanes[0].busy(BACKWARDS)) == (6, 12)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "none"])
def test_lanes_are_as_long_as_the_recurrence_of_each_schedule(name: str) -> None:
    from rapid_dse.parallel.recurrence import step_seconds  # loads numba

    schedule, draw = SCHEDULE_CLASSES[CODE[name]], np.random.default_rng(len(name))
    for pp, micro_batches in ((2, 4), (4, 8), (4, 20), (3, 9)):
        chunks = 2 if schedule.interleaves else schedule.fixed_chunks
        kinds = KINDS if schedule.splits_backward else 2
        seconds = draw.uniform(0.5, 2.0, (kinds, pp * chunks))
        if kinds == KINDS:
            seconds[1] = seconds[2] + seconds[3]  # a backward pass that is not split is both of its parts
        lanes = lanes_of(CODE[name], pp, chunks, micro_batches, seconds)
        for lane in lanes:
            assert (lane.begin[1:] >= lane.end[:-1] - 1e-12).all(), "a stage runs one pass at a time"
            assert lane.order.shape[1] == len(lane.begin)
        expected = float(step_seconds(seconds.reshape(-1, 1), (CODE[name], pp, chunks), np.array([micro_batches]))[0])
        if schedule.runs_on:  # of many such steps one takes no longer than what some stage spends on the one that is drawn
            spent = [float(lane.end[-1] - lane.begin[0]) for lane in lanes]
            assert spent[0] * (1 - 1e-9) <= expected <= max(spent) * (1 + 1e-9)
        else:
            assert max(float(lane.end[-1]) for lane in lanes) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "keys",
    [
        "parallel.pp=4 parallel.tp=2 hw.num_gpus=8",
        "parallel.pp=4 parallel.vpp=2 parallel.schedule=interleaved_1f1b",
        "parallel.pp=8 hw.num_gpus=8 parallel.zero=0 workload.global_batch_size=24",
        "parallel.pp=4 'parallel.stage_layers=[6,10,10,6]' parallel.recompute=full",
    ],
)
def test_lanes_and_what_comes_behind_are_the_step(keys: str) -> None:
    """On one replica nothing is exchanged at the end but the sums of tensor parallelism: the optimizer and the host's step remain."""
    usual = ["hw=h100", "model=llama3_1_8b", "parallel.dp=1", "hw.num_gpus=4", "workload.global_batch_size=32"]
    portion = single(read([*usual, *shlex.split(keys)]))
    layout, scenario = portion.layouts, portion.scenario
    lanes = lanes_of(
        int(layout.schedule[0]),
        int(layout.pp[0]),
        int(layout.chunks[0]),
        int(layout.num_micro_batches[0]),
        pipeline_passes(scenario, layout),
    )
    priced = price(scenario, layout)
    behind = priced.time_dp_s[0] + priced.time_optimizer_s[0] + scenario.software.host.host_step
    assert max(lane.end[-1] for lane in lanes) + behind == pytest.approx(priced.step_time_s[0], rel=0.01)
