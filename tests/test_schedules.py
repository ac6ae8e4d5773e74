"""Pipeline schedules: the closed forms against their papers, and against the schedules run op by op."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from schedule_columns import bubble, in_flight

from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.config.software import Software
from rapid_dse.parallel.schedules import CHUNKS, SCHEDULE_CLASSES
from rapid_dse.parallel.schedules.schedule import FloatColumn, IntColumn, Slots
from rapid_dse.simulate.slots import launched_passes

NONE, GPIPE, ONE_F_ONE_B, INTERLEAVED = (SCHEDULES.index(name) for name in ("none", "gpipe", "1f1b", "interleaved_1f1b"))
Op = tuple[str, int, int]  # "F" or "B", micro-batch, model chunk of the stage


def column(value: int) -> IntColumn:
    return np.array([value])


def gpipe_order(pp: int, micro_batches: int, stage: int) -> list[Op]:
    """arXiv 1811.06965: all forwards, then all backwards."""
    return [("F", i, 0) for i in range(micro_batches)] + [("B", i, 0) for i in range(micro_batches)]


def one_f_one_b_order(pp: int, micro_batches: int, stage: int) -> list[Op]:
    """arXiv 2104.04473, figure 4: p - s - 1 forwards to warm up, then one forward and one backward in turn."""
    warm = min(pp - stage - 1, micro_batches)
    order: list[Op] = [("F", i, 0) for i in range(warm)]
    for i in range(micro_batches - warm):
        order += [("F", warm + i, 0), ("B", i, 0)]
    return order + [("B", i, 0) for i in range(micro_batches - warm, micro_batches)]


def interleaved_order(pp: int, micro_batches: int, stage: int, vpp: int) -> list[Op]:
    """Megatron-LM, forward_backward_pipelining_with_interleaving: groups of p micro-batches pass through the chunks in turn."""
    total = micro_batches * vpp

    def at(step: int, forward: bool) -> Op:
        group, rest = divmod(step, pp * vpp)
        chunk, i = divmod(rest, pp)
        return ("F" if forward else "B", group * pp + i, chunk if forward else vpp - 1 - chunk)

    warm = min(2 * (pp - stage - 1) + (vpp - 1) * pp, total)
    order = [at(step, True) for step in range(warm)]
    for step in range(total - warm):
        order += [at(warm + step, True), at(step, False)]
    return order + [at(step, False) for step in range(total - warm, total)]


def run(orders: list[list[Op]], vpp: int, forward: list[float], backward: list[float]) -> tuple[float, list[int]]:
    """``run_chunks`` of stages whose chunks are alike; seconds of all chunks together."""
    lengths = np.repeat(np.array([forward, backward])[:, None] / vpp, vpp, axis=1)
    return run_chunks(orders, lengths)


def run_chunks(orders: list[list[Op]], lengths: FloatColumn) -> tuple[float, list[int]]:
    """Makespan and the most chunk-micro-batches each stage holds, every op as early as its inputs and its stage allow.

    ``lengths`` are ``(2, vpp, pp)``: seconds of forward and backward, by chunk and stage.
    """
    pp, vpp, finish = len(orders), lengths.shape[1], {}
    done, free = [0] * pp, [0.0] * pp
    last = pp * vpp - 1
    while any(done[s] < len(orders[s]) for s in range(pp)):
        before = sum(done)
        for s in range(pp):
            while done[s] < len(orders[s]):
                kind, i, chunk = orders[s][done[s]]
                place = chunk * pp + s
                if kind == "F":
                    needs = [] if place == 0 else [("F", i, place - 1)]
                else:
                    needs = [("F", i, place)] + ([] if place == last else [("B", i, place + 1)])
                if any(need not in finish for need in needs):
                    break
                start = max([free[s], *(finish[need] for need in needs)])
                free[s] = start + float(lengths["FB".index(kind), chunk, s])
                finish[kind, i, place] = free[s]
                done[s] += 1
        assert sum(done) > before, "the schedule deadlocks"
    held = [max(np.cumsum([1 if op[0] == "F" else -1 for op in order])) for order in orders]
    return max(free), held


def slots_of(forward: list[float], backward: list[float], weights: list[float], vpp: int, micro_batches: int) -> Slots:
    """Every stage of one pipeline as a candidate, ``(pp, 1)``."""
    pp = len(forward)

    def rows(values: list[float]) -> tuple[FloatColumn, FloatColumn, FloatColumn]:
        own = np.array(values)[:, None]
        before = np.cumsum(own, axis=0) - own
        return own, before, own.sum(axis=0) - before - own

    whole, before, after = rows([a + b for a, b in zip(forward, backward, strict=True)])
    ahead, ahead_before, _ = rows(forward)
    mine, weights_before, weights_after = rows(weights)
    position = np.arange(pp)[:, None]
    return Slots(
        whole=whole,
        forward=ahead,
        weights=mine,
        before=before,
        after=after,
        forward_before=ahead_before,
        weights_before=weights_before,
        weights_after=weights_after,
        weights_first=mine[0],
        position=position,
        behind=pp - 1 - position,
        chunks=column(vpp),
        micro_batches=column(micro_batches),
    )


def closed_form(code: int, slots: Slots) -> float:
    """The step's length: that of the stage which all others wait for."""
    return float((slots.micro_batches * slots.whole + bubble(column(code), slots)).max())


CASES = [(pp, vpp, groups) for pp, vpp, groups in product((2, 3, 4, 8), (1, 2, 4), (1, 2, 5))]


@pytest.mark.parametrize(("pp", "vpp", "groups"), CASES)
def test_closed_forms_are_those_of_the_schedule_run_op_by_op(pp: int, vpp: int, groups: int) -> None:
    """Equal stages: the makespan is m slots and the bubble, the peak is what the closed form holds, exactly."""
    micro_batches, forward, backward = groups * pp, 1.0, 2.25
    codes = [INTERLEAVED] if vpp > 1 else [GPIPE, ONE_F_ONE_B]
    for code in codes:
        make = {GPIPE: gpipe_order, ONE_F_ONE_B: one_f_one_b_order}.get(code)
        orders = [make(pp, micro_batches, s) if make else interleaved_order(pp, micro_batches, s, vpp) for s in range(pp)]
        makespan, held = run(orders, vpp, [forward] * pp, [backward] * pp)
        slots = slots_of([forward] * pp, [backward] * pp, [0.0] * pp, vpp, micro_batches)
        assert makespan == pytest.approx(closed_form(code, slots), rel=1e-12)
        formula = [
            float(in_flight(column(code), column(s), column(pp), column(vpp), column(micro_batches), np.zeros(1))[0]) for s in range(pp)
        ]
        assert formula == pytest.approx([each / vpp for each in held], rel=1e-12)


def by_recurrence(lengths: FloatColumn, micro_batches: int) -> float:
    """What the compiled recurrence says of one pipeline, ``lengths`` as ``run_chunks`` has them."""
    from rapid_dse.parallel.recurrence import step_seconds  # loads numba

    _, vpp, pp = lengths.shape
    code = INTERLEAVED if vpp > 1 else ONE_F_ONE_B
    return float(step_seconds(lengths.reshape(-1, 1), (code, pp, vpp), np.array([micro_batches]))[0])


def test_unequal_chunks_by_hand() -> None:
    """Two stages, two chunks, two micro-batches a and b; a layer takes 1 forward, 2 backward; chunks of 2, 2, 1, 1 layers.

    Stage 0 runs a0 b0 a1 b1 forward, then a1 b1 a0 b0 backward; stage 1 a0 b0 forward, then a1 forward, a1 backward, b1 forward,
    b1 backward, then a0 b0 backward. As each waits for what it needs:

        stage 0   F a0 0-2   F b0 2-4   F a1 4-5   F b1 6-7   B a1 9-11   B b1 12-14   B a0 16-20   B b0 20-24
        stage 1   F a0 2-4   F b0 4-6   F a1 6-7   B a1 7-9   F b1 9-10   B b1 10-12   B a0 12-16   B b0 16-20

    A stage works 18, so that 6 are the bubble; of chunks of 1.5 layers each it would be (p - 1)(F + B) / v = 4.5.
    """
    layers = np.array([[2.0, 2.0], [1.0, 1.0]])  # (vpp, pp)
    assert by_recurrence(np.stack([layers, 2 * layers]), 2) == 24
    even = np.full((2, 2), 1.5)
    assert by_recurrence(np.stack([even, 2 * even]), 2) == 18 + 4.5


@pytest.mark.parametrize(("pp", "vpp", "groups"), [(2, 2, 1), (2, 4, 3), (4, 2, 5), (8, 3, 2), (3, 5, 12), (4, 3, 40)])
def test_the_recurrence_is_the_schedule_run_op_by_op(pp: int, vpp: int, groups: int) -> None:
    """Passes of any lengths, also where more groups of micro-batches go by than are run."""
    draw = np.random.default_rng(pp * vpp * groups)
    orders = [interleaved_order(pp, groups * pp, stage, vpp) for stage in range(pp)]
    for spread in (0.0, 0.02, 0.5, 3.0):
        lengths = np.array([1.0, 2.25])[:, None, None] * (1 + spread * draw.random((2, vpp, pp)))
        assert by_recurrence(lengths, groups * pp) == pytest.approx(run_chunks(orders, lengths)[0], rel=1e-9)


def test_the_recurrence_runs_1f1b_of_any_split_op_by_op() -> None:
    """Stages of 0 to 7 layers, a head, fewer micro-batches than stages and many more, that no number divides."""
    draw = np.random.default_rng(3)
    for micro_batches in (1, 2, 5, 7, 13, 29, 64, 203):
        pp = int(draw.integers(2, 9))
        lengths = np.array([1.0, 2.25])[:, None, None] * draw.integers(0, 8, pp)
        lengths[:, 0, -1] += np.array([0.7, 1.4])
        orders = [one_f_one_b_order(pp, micro_batches, stage) for stage in range(pp)]
        assert by_recurrence(lengths, micro_batches) == pytest.approx(run_chunks(orders, lengths)[0], rel=1e-9)


@pytest.mark.parametrize(("pp", "vpp", "groups"), [(2, 2, 1), (4, 2, 3), (8, 4, 2), (16, 3, 9)])
def test_laws_of_the_recurrence(pp: int, vpp: int, groups: int) -> None:
    """Chunks that are all alike: m (F + B) and a bubble of (p - 1)(F + B) / v, exactly, the closed form.

    Whatever passes take, no less than this when all take the least, nor than what a stage does while others wait: all of its own work,
    after the first micro-batch came to it and before the last one's gradient went back from it.
    """
    draw, micro_batches = np.random.default_rng(pp * vpp * groups), groups * pp
    alike = np.broadcast_to(np.array([1.0, 2.25])[:, None, None] / vpp, (2, vpp, pp))
    equal = (micro_batches + (pp - 1) / vpp) * 3.25
    assert equal == pytest.approx(closed_form(INTERLEAVED, slots_of([1.0] * pp, [2.25] * pp, [0.0] * pp, vpp, micro_batches)))
    assert by_recurrence(alike, micro_batches) == pytest.approx(equal, rel=1e-12)
    for spread in (0.05, 0.5, 2.0):
        lengths = alike * (1 + spread * draw.random((2, vpp, pp)))
        ahead = lengths[:, 0].sum(axis=0)
        alone = micro_batches * lengths.sum(axis=(0, 1)) + np.cumsum(ahead) - ahead
        assert by_recurrence(lengths, micro_batches) >= max(equal, alone.max()) * (1 - 1e-12)


UNEVEN = [[3, 2, 2, 2], [2, 3, 2, 2], [2, 2, 2, 3], [3, 3, 2, 2, 2, 2], [5, 6, 6, 5], [2, 2, 2, 2, 2, 2, 2, 4], [4, 1], [1, 4]]


@pytest.mark.parametrize("layers", UNEVEN, ids=str)
@pytest.mark.parametrize("micro_batches", [1, 3, 8, 24])
def test_stages_that_differ_wait_as_the_schedule_run_op_by_op_does(layers: list[int], micro_batches: int) -> None:
    """Exact for GPipe, a lower bound for 1F1B that is within 1 %: the pass that waits longest may change stages."""
    pp, forward, backward = len(layers), [1.0 * n for n in layers], [2.25 * n for n in layers]
    slots = slots_of(forward, backward, [0.0] * pp, 1, micro_batches)
    all_forwards, _ = run([gpipe_order(pp, micro_batches, s) for s in range(pp)], 1, forward, backward)
    alternating, _ = run([one_f_one_b_order(pp, micro_batches, s) for s in range(pp)], 1, forward, backward)
    assert closed_form(GPIPE, slots) == pytest.approx(all_forwards, rel=1e-12)
    assert 0.99 * alternating <= closed_form(ONE_F_ONE_B, slots) <= alternating * (1 + 1e-12)


def test_splits_of_all_kinds_wait_as_the_schedule_run_op_by_op_does() -> None:
    """Stages of any layers, empty ones among them, with and without a head: GPipe exact; 1F1B never above the schedule, exact for nine in
    ten of the splits whose stages differ by a layer or two, within 1.5 % of it there and 12 % anywhere (an empty stage beside the fullest,
    fewer micro-batches than stages)."""
    draw, near, far = np.random.default_rng(7), [], []
    for number in range(600):
        pp, micro_batches, similar = int(draw.integers(2, 9)), int(draw.integers(1, 33)), number % 2 == 0
        layers = draw.integers(2, 9) + draw.integers(-1, 2, pp) if similar else draw.integers(0, 8, pp)
        layers[0] += not layers.any()
        head = draw.choice([0.0, 0.7])
        forward, backward = [1.0 * n for n in layers], [2.25 * n for n in layers]
        forward[-1], backward[-1] = forward[-1] + head, backward[-1] + 2 * head
        slots = slots_of(forward, backward, [0.0] * pp, 1, micro_batches)
        all_forwards, _ = run([gpipe_order(pp, micro_batches, s) for s in range(pp)], 1, forward, backward)
        alternating, _ = run([one_f_one_b_order(pp, micro_batches, s) for s in range(pp)], 1, forward, backward)
        assert closed_form(GPIPE, slots) == pytest.approx(all_forwards, rel=1e-12)
        (near if similar else far).append(1 - closed_form(ONE_F_ONE_B, slots) / alternating)
    assert min(*near, *far) > -1e-12
    assert max(near) < 0.015
    assert max(far) < 0.12
    assert np.mean(np.array(near) < 1e-9) > 0.9


def test_gpipe_waits_for_the_longest_pass_each_way() -> None:
    """Exact for stages of any forward and backward passes: two by hand, m = 4: 3 · 4 + 1 forward, 5 · 4 + 1 backward; and random ones."""
    assert closed_form(GPIPE, slots_of([3.0, 1.0], [1.0, 5.0], [0.0] * 2, 1, 4)) == 13 + 21
    draw = np.random.default_rng(11)
    for _ in range(100):
        pp, micro_batches = int(draw.integers(1, 7)), int(draw.integers(1, 12))
        forward, backward = draw.uniform(0, 3, (2, pp)).tolist()
        makespan, _ = run([gpipe_order(pp, micro_batches, s) for s in range(pp)], 1, forward, backward)
        assert closed_form(GPIPE, slots_of(forward, backward, [0.0] * pp, 1, micro_batches)) == pytest.approx(makespan, rel=1e-12)


def seconds_of_launches(passes: list[tuple[float, float]], kernels: int) -> float:
    """Passes of so many kernels, which the host launches one by one and the device runs in that order: of each the device's seconds and
    the host's."""
    launched = done = 0.0
    for device, host in passes:
        for _ in range(kernels):
            launched += host / kernels
            done = max(done, launched) + device / kernels
    return done


@pytest.mark.parametrize(("forward", "backward", "host"), [(1.0, 6.0, 4.5), (2.0, 3.0, 6.0), (1.0, 2.5, 3.0), (1.0, 2.0, 9.0)])
def test_the_hosts_lead_reaches_the_passes_that_follow(forward: float, backward: float, host: float) -> None:
    """Kernel by kernel: where passes alternate, a slot takes the longer of device and host; where all passes one way follow each other,
    each of them does, by itself."""
    software, m, slot = Software(name="eager"), 400, ((forward, host / 3), (backward, host * 2 / 3))
    device, launches = (np.array(part)[:, None] for part in zip(*slot, strict=True))
    for apart, passes in ((False, list(slot) * m), (True, [slot[0]] * m + [slot[1]] * m)):
        lasting = launched_passes(software, list(device), list(launches), apart)
        assert seconds_of_launches(passes, 20) / m == pytest.approx(float(sum(lasting)[0]), rel=3e-3)


def test_published_bubbles() -> None:
    """F = 1, B = 2 (of which weight gradients W = 1), p = 8, v = 4: every stage is the one that all wait for."""
    slots = slots_of([1.0] * 8, [2.0] * 8, [1.0] * 8, 4, 32)
    idle = {name: bubble(column(code), slots) for code, name in enumerate(SCHEDULES)}
    assert (idle["none"] == 0).all()
    assert (idle["gpipe"] == 7 * (1 + 2)).all()  # (p - 1)(F + B), arXiv 2104.04473
    assert (idle["1f1b"] == 7 * (1 + 2)).all()
    assert (idle["interleaved_1f1b"] == 7 * (1 + 2) / 4).all()  # v times smaller, the same paper
    assert (idle["zero_bubble"] == 7 * (1 + 1 - 1)).all()  # (p - 1)(F + B - W), B without W: arXiv 2401.10241, table 1


def test_bubbles_never_go_below_zero() -> None:
    for code, micro_batches in product(range(len(SCHEDULES)), (2, 8)):
        assert (bubble(column(code), slots_of([9.0, 1.0], [9.0, 9.0], [9.0, 9.0], 1, micro_batches)) >= 0).all()


@pytest.mark.parametrize(("pp", "vpp"), [(2, 2), (4, 2), (8, 3), (16, 8)])
def test_the_interleaved_first_stage_holds_what_korthikanti_published(pp: int, vpp: int) -> None:
    """arXiv 2205.05198, section 4.2.3: 1 + (p - 1) / (p v) times 1F1B's."""
    many = column(64 * pp)
    plain = in_flight(column(ONE_F_ONE_B), column(0), column(pp), column(1), many, np.zeros(1))
    interleaved = in_flight(column(INTERLEAVED), column(0), column(pp), column(vpp), many, np.zeros(1))
    assert interleaved / plain == pytest.approx(1 + (pp - 1) / (pp * vpp))


def test_no_schedule_holds_more_than_all_micro_batches_or_less_than_one_chunk() -> None:
    """Every schedule, every stage; an earlier stage holds no fewer (``Stages`` relies on that)."""
    for code, pp, vpp, groups in product(range(len(SCHEDULE_CLASSES)), (2, 4, 8), (1, 4), (1, 3)):
        if (code == INTERLEAVED) != (vpp > 1) or code == NONE:
            continue
        chunks = max(vpp, CHUNKS[code])
        if chunks > vpp and groups == 1:
            continue
        held = in_flight(np.full(pp, code), np.arange(pp), *(np.full(pp, each) for each in (pp, chunks, groups * pp)), np.full(pp, 0.9))
        assert (held <= groups * pp).all()
        assert (held >= 1 / chunks).all()
        assert (np.diff(held) <= 0).all()
