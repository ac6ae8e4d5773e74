"""Pipeline schedules as graphs: bubbles and activation peaks are their formulas'."""

from __future__ import annotations

import numpy as np
import pytest
from layout_spread import EVENT_BACKENDS, case

from rapid_dse.config.run import SCHEDULES
from rapid_dse.network.engine import run_graph
from rapid_dse.network.system import SystemSettings
from rapid_dse.network.topology import Topology
from rapid_dse.simulate import price
from rapid_dse.trace.coarse import BlockPasses, Pass
from rapid_dse.trace.pipeline import BACKWARD, FORWARD, WEIGHTS, StageWork, Task, order
from rapid_dse.trace.schedules import in_flight
from rapid_dse.trace.script import Directory, Labels, Script, Style, assemble
from rapid_dse.trace.stage import Boundary, StageWriter

F, B, W = 0.010, 0.014, 0.006  # seconds of a stage: forward, input gradient, weight gradient
SIZES = [(2, 4), (4, 4), (4, 8), (8, 16), (8, 9), (3, 7)]


def _makespan(schedule: str, pp: int, vpp: int, m: int) -> float:
    """Seconds of a step of equal stages without transfers, in seconds, on the engine."""
    labels = Labels()
    style = Style(True, True, {}, labels)
    passes = BlockPasses(labels, Pass("forward", {"compute": F / vpp}), Pass("backward", {"compute": (B + W) / vpp}), W / vpp, 0.0)
    zeros = dict.fromkeys(StageWork.__dataclass_fields__, 0)
    work = StageWork(**(zeros | {"chunks": (1,) * vpp, "shared": (), "calls": 1, "tree": True}))
    scripts = []
    for stage in range(pp):
        script = Script(style)
        StageWriter(script, work, passes, Boundary(8.0, 1e-9, 0.0, False), stage, pp).write(order(schedule, stage, pp, vpp, m))
        scripts.append(script)
    ranks = np.arange(pp)
    traced = assemble(pp, scripts, ranks, Directory({}, {"next": np.roll(ranks, -1), "previous": np.roll(ranks, 1)}))
    topology = Topology.of(["Switch"], [pp], [100.0], [1.0])
    result = run_graph(traced.graph, topology, SystemSettings(), "ideal")
    assert not result.deadlocked
    return result.makespan_ns / 1e9


@pytest.mark.parametrize(("pp", "m"), SIZES)
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_bubble_is_one_pass_through_the_other_stages(schedule: str, pp: int, m: int) -> None:
    bubble = _makespan(schedule, pp, 1, m) - m * (F + B + W)
    assert bubble == pytest.approx((pp - 1) * (F + B + W), rel=1e-5)


@pytest.mark.parametrize(("pp", "vpp", "m"), [(2, 2, 4), (4, 2, 4), (4, 2, 8), (4, 4, 16), (8, 2, 16)])
def test_interleaving_divides_the_bubble_by_the_chunks(pp: int, vpp: int, m: int) -> None:
    bubble = _makespan("interleaved_1f1b", pp, vpp, m) - m * (F + B + W)
    assert bubble == pytest.approx((pp - 1) * (F + B + W) / vpp, rel=1e-5)


@pytest.mark.parametrize(("pp", "m"), SIZES)
def test_zero_bubble_is_below_1f1b_by_two_weight_gradients_a_stage(pp: int, m: int) -> None:
    """Qi et al. (arXiv 2401.10241), section 3: (p - 1)(F + B - W), with B the input gradient alone."""
    bubble = _makespan("zero_bubble", pp, 1, m) - m * (F + B + W)
    assert bubble == pytest.approx((pp - 1) * (F + B - W), rel=1e-5)


def _held(tasks: list[Task], vpp: int) -> float:
    """Most micro-batches whose activations are held at a time, in units of all the stage's layers."""
    held = peak = 0
    for task in tasks:
        held += {FORWARD: 1, BACKWARD: -1, WEIGHTS: 0}[task.kind]
        peak = max(peak, held)
    return peak / vpp


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "none"])
@pytest.mark.parametrize(("pp", "m"), [(2, 4), (4, 4), (4, 8), (8, 16)])
def test_activation_peak_of_every_stage_is_the_formulas(schedule: str, pp: int, m: int) -> None:
    for vpp in (2, 3) if schedule == "interleaved_1f1b" else (1,):
        for stage in range(pp):
            columns = (np.array([value]) for value in (SCHEDULES.index(schedule), stage, pp, vpp, m))
            assert _held(order(schedule, stage, pp, vpp, m), vpp) == pytest.approx(in_flight(*columns)[0])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_task_runs_once_and_forward_before_backward(schedule: str) -> None:
    pp, vpp, m = (1 if schedule == "none" else 4), (3 if schedule == "interleaved_1f1b" else 1), 8
    for stage in range(pp):
        tasks = order(schedule, stage, pp, vpp, m)
        assert len(set(tasks)) == len(tasks) == m * vpp * (3 if schedule == "zero_bubble" else 2)
        place = {task: number for number, task in enumerate(tasks)}
        for task in tasks:
            if task.kind == BACKWARD:
                assert place[Task(FORWARD, task.micro_batch, task.chunk)] < place[task]
            if task.kind == WEIGHTS:
                assert place[Task(BACKWARD, task.micro_batch, task.chunk)] < place[task]


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed"):
        order("chimera", 0, 4, 1, 8)


def test_schedules_rank_as_they_should_on_every_pipeline_backend() -> None:
    for backend in EVENT_BACKENDS[1:]:
        steps = []
        for schedule, vpp in (("gpipe", 1), ("interleaved_1f1b", 2), ("zero_bubble", 1)):
            one = case(schedule, num_gpus=64, tp=8, sequence_parallel=1, pp=8, vpp=vpp, global_batch_size=8)
            steps.append(float(price(one.scenario(backend), one.layouts()).step_time_s[0]))
        assert steps[0] > max(steps[1:]), backend
