"""Schedules with split backward passes and V-shaped stage maps: their orders as frameworks write them, published bubbles and memory, and
the closed forms and the recurrence against a simulation of the order, pass by pass."""

from __future__ import annotations

import ast
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from schedule_columns import in_flight
from test_schedules import slots_of

import rapid_dse
from rapid_dse.config.schedule_names import SCHEDULE_MODULES, SCHEDULES
from rapid_dse.parallel.schedules import SCHEDULE_CLASSES, schedule_of
from rapid_dse.parallel.schedules.schedule import BACKWARD, FORWARD, FORWARD_BESIDE, INPUT, WEIGHTS, Schedule

F, B, G, W = "F", "B", "G", "W"  # forward; backward, whole; input gradients and weight gradients alone
Pass = tuple[str, int, int]  # kind, micro-batch, chunk
Group = tuple[Pass, ...]  # passes that start when all have their inputs, and give what they give when all are done
PACKAGE = Path(rapid_dse.__file__).parent


def zbv_order(rank: int, pp: int, micro_batches: int) -> list[Group]:
    """PyTorch, distributed/pipelining/schedules.py, ``ScheduleZBVZeroBubble._calculate_single_rank_operations``."""
    total = max(2 * pp - 1, micro_batches)
    ops: list[Pass] = []
    f0 = f1 = b0 = b1 = 0
    for _ in range(2 * (pp - rank) - 1):
        ops.append((F, f0, 0))
        f0 += 1
    for _ in range(rank):
        ops += [(F, f1, 1), (F, f0, 0)]
        f0, f1 = f0 + 1, f1 + 1
    for _ in range(pp - rank):
        ops += [(F, f1, 1), (G, b1, 1), (W, b1, 1)]
        f1, b1 = f1 + 1, b1 + 1
    while f1 < f0 or f0 < total:
        if f0 < total:
            ops.append((F, f0, 0))
            f0 += 1
        ops += [(G, b0, 0), (W, b0, 0), (F, f1, 1), (G, b1, 1), (W, b1, 1)]
        b0, b1, f1 = b0 + 1, b1 + 1, f1 + 1
    w0, w1 = b0, b1
    for _ in range(rank):
        ops += [(G, b0, 0), (G, b1, 1)]
        b0, b1 = b0 + 1, b1 + 1
    for _ in range(pp - rank):
        ops += [(G, b0, 0), (W, w0, 0)]
        b0, w0 = b0 + 1, w0 + 1
    ops += [(W, i, 1) for i in range(w1, b1)] + [(W, i, 0) for i in range(w0, b0)]
    return [(op,) for op in ops if op[1] < micro_batches]


def dualpipe_v_order(rank: int, pp: int, micro_batches: int) -> list[Group]:
    """DeepSeek's DualPipe, dualpipe/dualpipev.py, ``DualPipeV.step``: eight steps, the fourth of them the main one."""
    count: dict[tuple[str, int], int] = {}
    late: list[tuple[int, int]] = []
    ops: list[Group] = []

    def number(kind: str, chunk: int) -> int:
        count[kind, chunk] = count.get((kind, chunk), -1) + 1
        return count[kind, chunk]

    def forward(chunk: int) -> Pass:
        return (F, number(F, chunk), chunk)

    def backward(chunk: int, enable_zb: bool = False) -> Pass:
        found = (G if enable_zb else B, number(B, chunk), chunk)
        late.extend([found[1:]] if enable_zb else [])
        return found

    for _ in range((pp - rank - 1) * 2):
        ops.append((forward(0),))
    for _ in range(rank + 1):
        ops += [(forward(0),), (forward(1),)]
    for _ in range(pp - rank - 1):
        ops += [(backward(1, enable_zb=True),), ((W, *late.pop(0)),), (forward(1),)]
    for i in range(micro_batches - pp * 2 + rank + 1):
        ops += [(forward(0),), (backward(1),)] if i == 0 and rank == pp - 1 else [(forward(0), backward(1))]
        ops.append((forward(1), backward(0)))
    for _ in range(pp - rank - 1):
        ops += [(backward(1),), (forward(1), backward(0))]
    enable_zb = False
    for i in range(rank + 1):
        enable_zb = enable_zb or (i == (rank + 1) // 2 and rank % 2 == 1)
        ops.append((backward(1, enable_zb),))
        enable_zb = enable_zb or (i == (rank + 1) // 2 and rank % 2 == 0)
        ops.append((backward(0, enable_zb),))
    for _ in range(pp - rank - 1):
        ops += [((W, *late.pop(0)),), (backward(0, enable_zb=True),)]
    ops += [((W, *each),) for each in late]
    return ops


def written(schedule: Schedule, rank: int, pp: int, chunks: int, micro_batches: int) -> list[Group]:
    """The schedule's own order, as the functions above write it."""
    names = {FORWARD: F, FORWARD_BESIDE: F, BACKWARD: B, INPUT: G, WEIGHTS: W}
    groups: list[Group] = []
    beside: Group = ()
    for kind, micro_batch, chunk in schedule.order(rank, pp, chunks, micro_batches).T.tolist():
        beside = (*beside, (names[kind], micro_batch, chunk))
        if kind != FORWARD_BESIDE:
            groups.append(beside)
            beside = ()
    return groups


@pytest.mark.parametrize(("name", "make", "least"), [("zb_v", zbv_order, 0), ("dualpipe_v", dualpipe_v_order, 2)])
def test_orders_are_those_of_the_frameworks(name: str, make: Callable[[int, int, int], list[Group]], least: int) -> None:
    for pp in (2, 3, 4, 7):
        for micro_batches in range(max(1, least * pp), 4 * pp):
            for rank in range(pp):
                assert written(schedule_of(name), rank, pp, 2, micro_batches) == make(rank, pp, micro_batches)


def run(orders: list[list[Group]], places: list[list[int]], lengths: dict[str, list[float]]) -> tuple[float, float]:
    """Seconds until the last pass ends, and the longest that a stage takes from its first pass to its last; each pass as early as its
    inputs and its stage allow.

    Args:
        places: of each stage's chunks in the model, first to last.
        lengths: seconds of each kind of pass, by place.
    """
    pp, last = len(orders), max(map(max, places))
    done, free, begins, ended = [0] * pp, [0.0] * pp, [-1.0] * pp, dict[tuple[str, int, int], float]()

    def inputs(stage: int, one: Pass) -> list[tuple[str, int, int]]:
        kind, i, chunk = one
        place = places[stage][chunk]
        if kind == F:
            return [(F, i, place - 1)] if place > 0 else []
        if kind == W:
            return [(B, i, place)]
        return [(F, i, place)] + ([(B, i, place + 1)] if place < last else [])

    while any(done[s] < len(orders[s]) for s in range(pp)):
        before = sum(done)
        for s in range(pp):
            while done[s] < len(orders[s]):
                group = orders[s][done[s]]
                needed = [need for one in group for need in inputs(s, one)]
                if any(need not in ended for need in needed):
                    break
                start = max([free[s], *(ended[need] for need in needed)])
                begins[s] = start if begins[s] < 0 else begins[s]
                free[s] = start + sum(lengths[kind][places[s][chunk]] for kind, _, chunk in group)
                ended |= {(B if kind == G else kind, i, places[s][chunk]): free[s] for kind, i, chunk in group}
                done[s] += 1
        assert sum(done) > before, "the schedule deadlocks"
    return max(free), max(end - begin for end, begin in zip(free, begins, strict=True))


def v_places(pp: int) -> list[list[int]]:
    return [[rank, 2 * pp - 1 - rank] for rank in range(pp)]


def plain_places(pp: int) -> list[list[int]]:
    return [[rank] for rank in range(pp)]


SPLIT = [("zero_bubble", 1), ("zb_v", 2), ("dualpipe_v", 2), ("zb_2p", 1)]


def simulated(name: str, pp: int, chunks: int, micro_batches: int, lengths: dict[str, list[float]]) -> float:
    """The step's seconds, by the simulation of the schedule's order."""
    schedule = schedule_of(name)
    orders = [written(schedule, rank, pp, chunks, micro_batches) for rank in range(pp)]
    whole, own = run(orders, v_places(pp) if chunks == 2 else plain_places(pp), lengths)
    return own if schedule.runs_on else whole


def equal(pp: int, chunks: int, f: float, b: float, w: float) -> dict[str, list[float]]:
    """Passes that take the same on every place."""
    return {kind: [each] * (pp * chunks) for kind, each in ((F, f), (B, b + w), (G, b), (W, w))}


@pytest.mark.parametrize("pp", [2, 3, 4, 8])
@pytest.mark.parametrize("turns", [2, 3, 5])
def test_published_bubbles_and_memory(pp: int, turns: int) -> None:
    """T_F = T_B = T_W = 1 for a chunk, so that a stage of two chunks takes twice that. arXiv 2401.10241, table 1: ZB-H1 (p - 1)(F + B - W),
    ZB-H2 (p - 1)(F + B - 2 W) at 2 p - 1 micro-batches; arXiv 2405.15362: ZB-V none at 1F1B's p. DualPipe's table:
    (PP/2 - 1)(F&B + B - 3 W) at PP + 1 chunks, here of PP = 2 p chunks, with F&B = 3 and B = 2."""
    bubbles = {"zero_bubble": pp - 1, "zb_2p": 0, "zb_v": 0, "dualpipe_v": (pp - 1) * (3 + 2 - 3)}
    held = {"zero_bubble": pp, "zb_2p": 2 * pp - 1, "zb_v": pp, "dualpipe_v": (2 * pp + 1) / 2}
    micro_batches = turns * pp
    for name, chunks in SPLIT:
        step = simulated(name, pp, chunks, micro_batches, equal(pp, chunks, 1.0, 1.0, 1.0))
        assert step == pytest.approx(3 * chunks * micro_batches + bubbles[name], rel=1e-12), name
        slots = slots_of([chunks * 1.0] * pp, [chunks * 2.0] * pp, [chunks * 1.0] * pp, chunks, micro_batches)
        assert schedule_of(name).bubble(slots)[:, 0] == pytest.approx([bubbles[name]] * pp), name
        columns = (np.array([SCHEDULES.index(name)] * pp), np.arange(pp), *(np.full(pp, each) for each in (pp, chunks, micro_batches)))
        assert in_flight(*columns, np.ones(pp)) == pytest.approx([held[name]] * pp), name


@given(pp=st.integers(2, 8), more=st.integers(0, 9), f=st.floats(0.2, 5), b=st.floats(0.2, 5), w=st.floats(0.05, 5))
def test_zb_2ps_bubble_on_equal_stages_whatever_passes_take(pp: int, more: int, f: float, b: float, w: float) -> None:
    """No less than what the first backward pass comes late, where it takes longer than a forward pass."""
    micro_batches = 3 * pp + more
    slots = slots_of([f] * pp, [b + w] * pp, [w] * pp, 1, micro_batches)
    found = schedule_of("zb_2p").bubble(slots)[0, 0]
    assert found == pytest.approx((pp - 1) * max(f + b - 2 * w, b - f, 0.0))
    step = simulated("zb_2p", pp, 1, micro_batches, equal(pp, 1, f, b, w))
    assert step == pytest.approx(micro_batches * (f + b + w) + found, rel=1e-9)


@pytest.mark.parametrize(("name", "chunks"), SPLIT)
def test_the_recurrence_is_the_order_run_pass_by_pass(name: str, chunks: int) -> None:
    """Passes of any lengths, few micro-batches and many more than are run."""
    from rapid_dse.parallel.recurrence import step_seconds  # loads numba

    draw = np.random.default_rng(chunks)
    for pp, turns, spread in product((2, 3, 5), (2, 3, 11), (0.0, 0.02, 0.5)):
        micro_batches = turns * pp + int(draw.integers(0, pp))
        f, b, w = (draw.uniform(0.5, 2) * (1 + spread * draw.random(pp * chunks)) for _ in range(3))
        lengths: NDArray[np.float64] = np.stack([f, b + w, b, w])
        step = simulated(name, pp, chunks, micro_batches, dict(zip((F, B, G, W), lengths.tolist(), strict=True)))
        pipeline = (SCHEDULES.index(name), pp, chunks)
        assert step_seconds(lengths.reshape(-1, 1), pipeline, np.array([micro_batches]))[0] == pytest.approx(step, rel=1e-9)


def test_every_schedule_is_a_file_and_a_line() -> None:
    """The names of the schema are the registry's, in the order of the codes; nothing beside the schedules asks for one by name."""
    assert len(SCHEDULE_CLASSES) == len(SCHEDULES) == len({type(each) for each in SCHEDULE_CLASSES})
    assert set(SCHEDULE_MODULES.values()) | {"__init__", "schedule", "stage_maps"} == {
        path.stem for path in (PACKAGE / "parallel" / "schedules").glob("*.py")
    }
    for each, module in zip(SCHEDULE_CLASSES, SCHEDULE_MODULES.values(), strict=True):
        assert type(each).__module__ == f"rapid_dse.parallel.schedules.{module}"
    named = set(SCHEDULES) - {"none"}
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name in ("schedules", "launch_files") or path.name == "schedule_names.py":  # frameworks have words of their own
            continue
        text = path.read_text()
        if any(name in text for name in named):
            assert not named & {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}, path


def test_a_users_split_of_zero_bubble_takes_what_its_order_does() -> None:
    """Stages of 14, 2, 2 and 14 layers, whose formula is 9e-5 short: the step is that of its graph on ideal links."""
    from layout_spread import case

    from rapid_dse.events.backends import price

    one = case("zero_bubble", num_gpus=4, pp=4, global_batch_size=8, settings={"parallel__stage_layers": [14, 2, 2, 14]})
    closed, ideal = (
        float(price(one.scenario(backend, backend__network="ideal"), one.layouts()).step_time_s[0])
        for backend in ("analytical", "full_astrasim_hierarchical")
    )
    assert closed == pytest.approx(ideal, rel=1e-5)
