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


Lengths = dict[str, list[float]]


def run(
    orders: list[list[Group]], places: list[list[int]], lengths: Lengths, begins: list[float], host: Lengths | None = None
) -> list[float]:
    """When each stage ends its last pass, s; each pass as early as its inputs and its stage allow, and its host, which launches passes one
    after the other, each once its input has come from another stage.

    Args:
        places: of each stage's chunks in the model, first to last.
        lengths: seconds of each kind of pass, by place; ``host``: of its launches.
        begins: when each stage may begin.
    """
    pp, last, launched = len(orders), max(map(max, places)), list(begins)
    done, free, ended = [0] * pp, list(begins), dict[tuple[str, int, int], float]()

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
                free[s] = start
                launched[s] = max([launched[s], *(ended[need] for need in needed if need[2] not in places[s])])
                for kind, _, chunk in group:
                    launched[s] += host[kind][places[s][chunk]] if host else 0.0
                    free[s] = max(free[s] + lengths[kind][places[s][chunk]], launched[s])
                ended |= {(B if kind == G else kind, i, places[s][chunk]): free[s] for kind, i, chunk in group}
                done[s] += 1
        assert sum(done) > before, "the schedule deadlocks"
    return free


def pace(orders: list[list[Group]], places: list[list[int]], lengths: Lengths, host: Lengths | None = None) -> float:
    """Seconds a step where each stage begins a step when it has ended the one before, without end: the longest mean of all ways through as
    many steps as there are stages at most that come back to the stage that they began on."""
    pp = len(orders)
    ways = np.array([run(orders, places, lengths, [0.0 if s == one else -np.inf for s in range(pp)], host) for one in range(pp)])
    longest, through = 0.0, ways
    for steps in range(1, pp + 1):
        longest = max(longest, np.diag(through).max() / steps)
        through = (through[:, :, None] + ways[None]).max(axis=1)
    return longest


def v_places(pp: int) -> list[list[int]]:
    return [[rank, 2 * pp - 1 - rank] for rank in range(pp)]


def plain_places(pp: int) -> list[list[int]]:
    return [[rank] for rank in range(pp)]


SPLIT = [("zero_bubble", 1), ("zb_v", 2), ("dualpipe_v", 2), ("zb_2p", 1)]


def simulated(name: str, pp: int, chunks: int, micro_batches: int, lengths: Lengths, host: Lengths | None = None) -> float:
    """The step's seconds, by the simulation of the schedule's order."""
    schedule = schedule_of(name)
    orders = [written(schedule, rank, pp, chunks, micro_batches) for rank in range(pp)]
    places = v_places(pp) if chunks == 2 else plain_places(pp)
    return pace(orders, places, lengths, host) if schedule.runs_on else max(run(orders, places, lengths, [0.0] * pp, host))


def equal(pp: int, chunks: int, f: float, b: float, w: float) -> Lengths:
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


@given(pp=st.integers(2, 5), more=st.integers(0, 9), f=st.floats(0.2, 5), b=st.floats(0.2, 5), w=st.floats(0.05, 5))
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


@pytest.mark.parametrize(("name", "chunks"), SPLIT)
def test_hosts_launch_beside_their_devices(name: str, chunks: int) -> None:
    """Launches that are longer than passes, shorter, and of which some are."""
    from rapid_dse.parallel.recurrence import step_seconds  # loads numba

    draw = np.random.default_rng(chunks)
    for pp, turns, pace_of_host in product((2, 3), (2, 7), (0.5, 0.95, 2.0)):
        micro_batches = turns * pp + int(draw.integers(0, pp))
        f, b, w = (draw.uniform(0.5, 2) * (1 + 0.2 * draw.random(pp * chunks)) for _ in range(3))
        lengths: NDArray[np.float64] = np.stack([f, b + w, b, w])
        launches = pace_of_host * np.stack([f + b + w, 2 * (f + b + w), f + b + w, f + b + w]) / 3
        passes, host = (dict(zip((F, B, G, W), each.tolist(), strict=True)) for each in (lengths, launches))
        step = simulated(name, pp, chunks, micro_batches, passes, host)
        pipeline, count = (SCHEDULES.index(name), pp, chunks), np.array([micro_batches])
        found = step_seconds(lengths.reshape(-1, 1), pipeline, count, None, launches.reshape(-1, 1))[0]
        assert found == pytest.approx(step, rel=1e-9), (pp, turns, pace_of_host)


@pytest.mark.parametrize(("name", "chunks"), SPLIT)
def test_no_shorter_pass_makes_a_longer_step(name: str, chunks: int) -> None:
    """Passes and launches of any lengths, of which some kinds or places get shorter: not by a rounding is a step longer."""
    from rapid_dse.parallel.recurrence import step_seconds  # loads numba

    draw, n = np.random.default_rng(17), 500
    for pp, micro_batches in ((2, 9), (4, 8), (4, 50), (7, 21)):
        passes, launches = draw.uniform(0.2, 1.0, (2, 4, pp * chunks, n)) * draw.uniform(0.2, 1.0, (2, 4, 1, n))
        passes[1], launches[1] = passes[2] + passes[3], launches[2] + launches[3]
        some = draw.random((4, pp * chunks, n)) < draw.choice([0.1, 0.5, 1.0], n)
        shorter = passes * np.where(some, draw.uniform(0.1, 1.0, n), 1.0)
        shorter[1] = shorter[2] + shorter[3]
        pipeline, counts = (SCHEDULES.index(name), pp, chunks), np.full(n, micro_batches)
        slow, fast = (step_seconds(each.reshape(-1, n), pipeline, counts, None, launches.reshape(-1, n)) for each in (passes, shorter))
        assert (fast <= slow * (1 + 1e-12)).all(), (pp, micro_batches)
        assert (fast < slow * (1 - 1e-3)).any()


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


@pytest.mark.parametrize(("name", "chunks"), SPLIT)
def test_graphs_have_the_hosts_timeline_too(name: str, chunks: int) -> None:
    """Layers that are launched about as fast as they run: where a pass waits for its launches, and where it does not, graphs agree."""
    from layout_spread import case

    from rapid_dse.events.backends import price

    for host in (2e-2, 3e-2, 6e-2):
        one = case(name, num_gpus=4, pp=4, global_batch_size=8, settings={"software__host_layer": host})
        closed, ideal = (
            price(one.scenario(backend, backend__network="ideal"), one.layouts())
            for backend in ("analytical", "full_astrasim_hierarchical")
        )
        assert float(ideal.step_time_s[0]) == pytest.approx(float(closed.step_time_s[0]), rel=7e-3), host
    assert float(ideal.time_host_s[0]) > 0.2 * float(ideal.step_time_s[0])


def test_input_gradients_alone_show_what_weight_gradients_hide_else() -> None:
    """dualpipe_v runs some backward passes in two parts, of which the first then shows tensor parallelism's transfers: a layer run as one
    node, and the pipeline by the recurrence, are the graph of all ranks."""
    from layout_spread import case

    from rapid_dse.events.backends import price

    one = case("dualpipe_v", num_gpus=8, tp=4, sequence_parallel=1, pp=2, global_batch_size=4)
    settings = {"backend__network": "ideal", "software__tp_backward_overlap": 0.5}
    hybrid, hierarchical, flattened = (
        float(price(one.scenario(backend, hw__network__dimensions__0__size=4, **settings), one.layouts()).step_time_s[0])
        for backend in ("hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened")
    )
    assert hybrid == pytest.approx(flattened, rel=1e-3)
    assert hierarchical == pytest.approx(flattened, rel=1e-3)
