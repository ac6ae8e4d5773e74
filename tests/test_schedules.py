"""Pipeline schedules: the closed forms against their papers, and against the schedules run op by op."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from rapid_dse.config.run import SCHEDULES
from rapid_dse.layouts import GPIPE, INTERLEAVED, NONE, ONE_F_ONE_B, ZERO_BUBBLE, IntColumn
from rapid_dse.trace.schedules import SCHEDULE_CLASSES, Slots, bubble, in_flight

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
        slots = Slots(np.array([(pp - 1) * (forward + backward)]), np.zeros(1), column(vpp))
        idle = float(bubble(column(code), slots)[0])
        assert makespan == pytest.approx(micro_batches * (forward + backward) + idle, rel=1e-12)
        formula = [float(in_flight(column(code), column(s), column(pp), column(vpp), column(micro_batches))[0]) for s in range(pp)]
        assert formula == pytest.approx([each / vpp for each in held], rel=1e-12)


@pytest.mark.parametrize("slow", [0, 1, 2, 3])
def test_uneven_stages_wait_for_one_pass_through_the_others(slow: int) -> None:
    """One slow stage: exact for GPipe, and for 1F1B where the last is slow (the head's); else 1F1B's tail waits less."""
    pp, micro_batches = 4, 16
    forward = [1.0] * pp
    forward[slow] = 1.5
    backward = [2 * each for each in forward]
    others = sum(forward) + sum(backward) - 4.5
    formula = micro_batches * 4.5 + float(bubble(column(ONE_F_ONE_B), Slots(np.array([others]), np.zeros(1), column(1)))[0])
    all_forwards, _ = run([gpipe_order(pp, micro_batches, s) for s in range(pp)], 1, forward, backward)
    alternating, _ = run([one_f_one_b_order(pp, micro_batches, s) for s in range(pp)], 1, forward, backward)
    assert all_forwards == pytest.approx(formula)
    assert alternating == pytest.approx(formula) if slow == pp - 1 else 0.93 * formula < alternating <= formula


def test_published_bubbles() -> None:
    """F = 1, B = 2 (of which weight gradients W = 1), p = 8, v = 4."""
    others, weights, vpp = np.full(5, 7 * 3.0), np.full(5, 7 * 1.0), np.full(5, 4)
    idle = dict(zip(SCHEDULES, bubble(np.arange(5), Slots(others, weights, vpp)), strict=True))
    assert idle["none"] == 0
    assert idle["gpipe"] == idle["1f1b"] == 7 * (1 + 2)  # (p - 1)(F + B), arXiv 2104.04473
    assert idle["interleaved_1f1b"] == pytest.approx(7 * (1 + 2) / 4)  # v times smaller, the same paper
    assert idle["zero_bubble"] == 7 * (1 + 1 - 1)  # (p - 1)(F + B - W), B without W: arXiv 2401.10241, table 1


def test_zero_bubbles_never_go_below_zero() -> None:
    slots = Slots(np.array([3.0]), np.array([2.0]), column(1))
    assert bubble(column(ZERO_BUBBLE), slots) == 0


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
