"""Pipeline schedules as graphs: bubbles and activation peaks are their formulas'."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout_spread import EVENT_BACKENDS, case
from schedule_columns import in_flight

from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.events.backends import price
from rapid_dse.events.programs.coarse_pipeline import BlockPasses, Pass
from rapid_dse.events.programs.script import Directory, Labels, Script, Style, assemble
from rapid_dse.events.programs.stage_program import StageWriter
from rapid_dse.events.programs.stage_work import Boundary, StageWork
from rapid_dse.interconnect.engine import run_graph
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.topology import Topology
from rapid_dse.parallel.schedules import CHUNKS, schedule_of
from rapid_dse.parallel.schedules.schedule import BACKWARD, FORWARD, FORWARD_BESIDE, INPUT, WEIGHTS, Schedule, Task, tasks
from rapid_dse.trace.graph import COMPUTE

F, B, W = 0.010, 0.014, 0.006  # seconds of a stage: forward, input gradient, weight gradient
SIZES = [(2, 4), (4, 4), (4, 8), (8, 16), (8, 9), (3, 7)]


def makespan(found: Schedule, pp: int, vpp: int, m: int) -> float:
    """Seconds of a step of equal stages without transfers on the engine: until the last pass of all, or, where stages run on into the next
    step, the longest from a stage's first pass to its last."""
    labels = Labels()
    style = Style(True, True, {}, labels)
    passes = BlockPasses(labels, [(Pass("forward", {"compute": F / vpp}), Pass("backward", {"compute": (B + W) / vpp}))], [W / vpp], 0.0)
    zeros = dict.fromkeys(StageWork.__dataclass_fields__, 0)
    layers = {"stalls": (0.0, 0.0, 0.0), "chunks": ((0,),) * vpp, "sizes": (1.0,), "layers": ((),)}
    work = StageWork(**(zeros | layers | {"shared": (), "embedding": None, "head": None, "calls": 1, "tree": True}))
    scripts = []
    for stage in range(pp):
        script = Script(style)
        writer = StageWriter(script, work, passes, Boundary(8.0, 1e-9, 0.0, False), stage, pp, found.stage_map)
        writer.write(tasks(found.order(stage, pp, vpp, m)))
        scripts.append(script)
    ranks = np.arange(pp)
    traced = assemble(pp, scripts, ranks, Directory({}, {"next": np.roll(ranks, -1), "previous": np.roll(ranks, 1)}))
    topology = Topology.of(["Switch"], [pp], [100.0], [1.0])
    result = run_graph(traced.graph, topology, SystemSettings(), "ideal")
    assert not result.deadlocked
    if not found.runs_on:
        return result.makespan_ns / 1e9
    begins = [int(result.start_ns[(traced.graph.rank == rank) & (traced.graph.kind == COMPUTE)].min()) for rank in ranks.tolist()]
    return float((result.finish_ns - begins).max()) / 1e9


@pytest.mark.parametrize(("pp", "m"), SIZES)
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_bubble_is_one_pass_through_the_other_stages(schedule: str, pp: int, m: int) -> None:
    bubble = makespan(schedule_of(schedule), pp, 1, m) - m * (F + B + W)
    assert bubble == pytest.approx((pp - 1) * (F + B + W), rel=1e-5)


@pytest.mark.parametrize(("pp", "vpp", "m"), [(2, 2, 4), (4, 2, 4), (4, 2, 8), (4, 4, 16), (8, 2, 16)])
def test_interleaving_divides_the_bubble_by_the_chunks(pp: int, vpp: int, m: int) -> None:
    bubble = makespan(schedule_of("interleaved_1f1b"), pp, vpp, m) - m * (F + B + W)
    assert bubble == pytest.approx((pp - 1) * (F + B + W) / vpp, rel=1e-5)


@pytest.mark.parametrize(("pp", "m"), SIZES)
def test_zero_bubble_is_below_1f1b_by_two_weight_gradients_a_stage(pp: int, m: int) -> None:
    """Qi et al. (arXiv 2401.10241), section 3: (p - 1)(F + B - W), with B the input gradient alone."""
    bubble = makespan(schedule_of("zero_bubble"), pp, 1, m) - m * (F + B + W)
    assert bubble == pytest.approx((pp - 1) * (F + B - W), rel=1e-5)


@pytest.mark.parametrize(("pp", "m"), SIZES)
def test_zb_2p_has_two_weight_gradients_a_stage_less(pp: int, m: int) -> None:
    """Qi et al. (arXiv 2401.10241), section 2.3: (p - 1)(F + B - 2 W), with B the input gradient alone; of enough micro-batches."""
    bubble = makespan(schedule_of("zb_2p"), pp, 1, max(m, 2 * pp)) - max(m, 2 * pp) * (F + B + W)
    assert bubble == pytest.approx((pp - 1) * (F + B - 2 * W), rel=1e-5)


def _held(passes: list[Task], vpp: int, late: float) -> float:
    """Most that a stage holds at a time, in units of a micro-batch's activations of all its layers, counted over its own order.

    A forward pass adds a chunk's activations. A backward pass frees them; where the weight gradient is a task of its own, it leaves the
    share ``late`` of them, which that task frees.
    """
    held = peak = 0.0
    for task in passes:
        held += {FORWARD: 1.0, FORWARD_BESIDE: 1.0, BACKWARD: -1.0, INPUT: late - 1.0, WEIGHTS: -late}[task.kind] / vpp
        peak = max(peak, held)
    assert abs(held) < 1e-9
    return peak


@given(
    schedule=st.sampled_from([name for name in SCHEDULES if name != "none"]),
    pp=st.integers(2, 12),
    groups=st.integers(1, 4),
    more=st.integers(0, 11),
    vpp=st.integers(2, 5),
    late=st.sampled_from([0.3, 32 / 34, 1.0, 2.5]),
)
def test_what_every_stage_holds_is_a_count_over_its_order(schedule: str, pp: int, groups: int, more: int, vpp: int, late: float) -> None:
    vpp = vpp if schedule == "interleaved_1f1b" else int(CHUNKS[SCHEDULES.index(schedule)])
    m = groups * pp + (0 if schedule == "interleaved_1f1b" else more)
    m += pp if schedule == "dualpipe_v" else 0
    for stage in range(pp):
        columns = (np.array([value]) for value in (SCHEDULES.index(schedule), stage, pp, vpp, m))
        counted = _held(tasks(schedule_of(schedule).order(stage, pp, vpp, m)), vpp, late)
        assert counted == pytest.approx(in_flight(*columns, np.full(1, late))[0]), stage


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_task_runs_once_and_forward_before_backward(schedule: str) -> None:
    pp, m = (1 if schedule == "none" else 4), 8
    vpp = 3 if schedule == "interleaved_1f1b" else int(CHUNKS[SCHEDULES.index(schedule)])
    for stage in range(pp):
        every = tasks(schedule_of(schedule).order(stage, pp, vpp, m))
        place: dict[tuple[int, int, int], int] = {}
        for number, task in enumerate(every):
            kind = FORWARD if task.kind == FORWARD_BESIDE else task.kind
            assert place.setdefault((kind, task.micro_batch, task.chunk), number) == number
            of = (task.micro_batch, task.chunk)
            if kind in (BACKWARD, INPUT):
                assert (FORWARD, *of) in place
            if kind == WEIGHTS:
                assert (INPUT, *of) in place
            if task.kind == FORWARD_BESIDE:
                assert every[number + 1].kind == BACKWARD
        for of in product(range(m), range(vpp)):
            assert (FORWARD, *of) in place
            assert ((BACKWARD, *of) in place) != ((INPUT, *of) in place)
            assert ((INPUT, *of) in place) == ((WEIGHTS, *of) in place)


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed"):
        schedule_of("chimera")


def test_schedules_rank_as_they_should_on_every_pipeline_backend() -> None:
    for backend in EVENT_BACKENDS[1:]:
        steps = []
        for schedule, vpp in (("gpipe", 1), ("interleaved_1f1b", 2), ("zero_bubble", 1)):
            one = case(schedule, num_gpus=64, tp=8, sequence_parallel=1, pp=8, vpp=vpp, global_batch_size=8)
            steps.append(float(price(one.scenario(backend), one.layouts()).step_time_s[0]))
        assert steps[0] > max(steps[1:]), backend
