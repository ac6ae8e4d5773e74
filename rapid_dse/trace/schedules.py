"""Pipeline schedules in closed form: what each waits for, and how many micro-batches a stage holds.

One schedule a class; ``SCHEDULE_CLASSES`` lists them in the order of ``config.run.SCHEDULES``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.layouts import IntColumn

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Slots:
    """What a stage spends on one micro-batch, all its model chunks together; seconds, ``(n_layouts,)``.

    ``others`` is the sum over the other stages, of forward and backward together; ``weight_others`` that of their weight
    gradients, ``vpp`` the model chunks a stage has.
    """

    others: FloatColumn
    weight_others: FloatColumn
    vpp: IntColumn


class Schedule(ABC):
    """One schedule: its bubble and the activations it keeps. Stages count from 0."""

    @abstractmethod
    def bubble(self, slots: Slots) -> FloatColumn:
        """Idle time of the slowest stage in a step, s, ``(n_layouts,)``.

        On p equal stages ``others`` is (p - 1)(F + B): the published bubbles follow.
        """

    @abstractmethod
    def in_flight(self, stage: IntColumn, pp: IntColumn, vpp: IntColumn, micro_batches: IntColumn) -> FloatColumn:
        """Micro-batches whose activations a stage holds at its peak, in units of all the stage's layers, ``(n_layouts,)``."""


class NoPipeline(Schedule):
    """pp = 1: nothing waits, one micro-batch is held."""

    def bubble(self, slots: Slots) -> FloatColumn:
        return np.zeros_like(slots.others)

    def in_flight(self, stage: IntColumn, pp: IntColumn, vpp: IntColumn, micro_batches: IntColumn) -> FloatColumn:
        return np.ones(len(pp))


class GPipe(Schedule):
    """All forwards, then all backwards (Huang et al., arXiv 1811.06965): every micro-batch is held."""

    def bubble(self, slots: Slots) -> FloatColumn:
        return slots.others

    def in_flight(self, stage: IntColumn, pp: IntColumn, vpp: IntColumn, micro_batches: IntColumn) -> FloatColumn:
        return micro_batches.astype(np.float64)


class OneForwardOneBackward(Schedule):
    """1F1B (Narayanan et al., arXiv 2104.04473, section 2.2): the bubble of GPipe, at most p - s micro-batches held."""

    def bubble(self, slots: Slots) -> FloatColumn:
        return slots.others

    def in_flight(self, stage: IntColumn, pp: IntColumn, vpp: IntColumn, micro_batches: IntColumn) -> FloatColumn:
        held: FloatColumn = np.minimum(micro_batches, pp - stage).astype(np.float64)
        return held


class Interleaved(Schedule):
    """Interleaved 1F1B (Narayanan et al., arXiv 2104.04473, section 2.2; memory: Korthikanti et al., arXiv 2205.05198, 4.2.3).

    The bubble is v times smaller; the first stage holds 1 + (p - 1) / (p v) times 1F1B's activations.
    """

    def bubble(self, slots: Slots) -> FloatColumn:
        idle: FloatColumn = slots.others / slots.vpp
        return idle

    def in_flight(self, stage: IntColumn, pp: IntColumn, vpp: IntColumn, micro_batches: IntColumn) -> FloatColumn:
        chunks = 2 * (pp - stage - 1) + (vpp - 1) * pp + 1
        held: FloatColumn = np.minimum(chunks, micro_batches * vpp) / vpp
        return held


class ZeroBubbleH1(Schedule):
    """ZB-H1 (Qi et al., arXiv 2401.10241, section 3): weight gradients fill the tail; memory as 1F1B.

    Bubble (p - 1)(F + B - W), B being the input gradient alone: 1F1B's less 2 (p - 1) W.
    """

    def bubble(self, slots: Slots) -> FloatColumn:
        idle: FloatColumn = np.maximum(0.0, slots.others - 2 * slots.weight_others)
        return idle

    def in_flight(self, stage: IntColumn, pp: IntColumn, vpp: IntColumn, micro_batches: IntColumn) -> FloatColumn:
        held: FloatColumn = np.minimum(micro_batches, pp - stage).astype(np.float64)
        return held


SCHEDULE_CLASSES: tuple[Schedule, ...] = (NoPipeline(), GPipe(), OneForwardOneBackward(), Interleaved(), ZeroBubbleH1())


def bubble(schedule: IntColumn, slots: Slots) -> FloatColumn:
    """The bubble of each layout's own schedule, s, ``(n_layouts,)``."""
    return np.choose(schedule, [each.bubble(slots) for each in SCHEDULE_CLASSES])


def in_flight(schedule: IntColumn, stage: IntColumn, pp: IntColumn, vpp: IntColumn, micro_batches: IntColumn) -> FloatColumn:
    """Micro-batches held by each layout's own schedule on ``stage``, ``(n_layouts,)``."""
    return np.choose(schedule, [each.in_flight(stage, pp, vpp, micro_batches) for each in SCHEDULE_CLASSES])
