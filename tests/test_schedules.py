"""Pipeline schedules: the closed forms against their papers, and against the schedules run op by op."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from rapid_dse.config.run import SCHEDULES
from rapid_dse.layouts import GPIPE, INTERLEAVED, NONE, ONE_F_ONE_B, IntColumn
from rapid_dse.trace.schedules import SCHEDULE_CLASSES, FloatColumn, Slots, bubble, in_flight

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
    """Makespan and the most chunk-micro-batches each stage holds, every op as early as its inputs and its stage allow."""
    pp, finish = len(orders), {}
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
                free[s] = start + (forward[s] if kind == "F" else backward[s]) / vpp
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
        vpp=column(vpp),
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
        formula = [float(in_flight(column(code), column(s), column(pp), column(vpp), column(micro_batches))[0]) for s in range(pp)]
        assert formula == pytest.approx([each / vpp for each in held], rel=1e-12)


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
    plain = in_flight(column(ONE_F_ONE_B), column(0), column(pp), column(1), many)
    interleaved = in_flight(column(INTERLEAVED), column(0), column(pp), column(vpp), many)
    assert interleaved / plain == pytest.approx(1 + (pp - 1) / (pp * vpp))


def test_no_schedule_holds_more_than_all_micro_batches_or_less_than_one_chunk() -> None:
    """Every schedule, every stage; an earlier stage holds no fewer (``Stages`` relies on that)."""
    for code, pp, vpp, groups in product(range(len(SCHEDULE_CLASSES)), (2, 4, 8), (1, 4), (1, 3)):
        if (code == INTERLEAVED) != (vpp > 1) or code == NONE:
            continue
        held = in_flight(np.full(pp, code), np.arange(pp), np.full(pp, pp), np.full(pp, vpp), np.full(pp, groups * pp))
        assert (held <= groups * pp).all()
        assert (held >= 1 / vpp).all()
        assert (np.diff(held) <= 0).all()


def test_classes_stand_in_the_order_of_their_words() -> None:
    names = [type(each).__name__ for each in SCHEDULE_CLASSES]
    assert names == ["NoPipeline", "GPipe", "OneForwardOneBackward", "Interleaved", "ZeroBubbleH1"]
    assert SCHEDULES == ("none", "gpipe", "1f1b", "interleaved_1f1b", "zero_bubble")
