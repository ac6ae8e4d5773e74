"""Pipeline schedules in closed form: what each waits for, and how many micro-batches a stage holds.

One schedule a class; ``SCHEDULE_CLASSES`` lists them in the order of ``config.run.SCHEDULES``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rapid_dse.parallel.layouts import IntColumn

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Slots:
    """What pipeline stages spend on one micro-batch, all their model chunks together; seconds, ``(n_stages, n_layouts)``.

    The rows are those stages that may end up the slowest; ``before`` and ``after`` sum over all stages ahead of each and behind it.

    Attributes:
        whole: forward and backward of the stage itself; ``forward`` and ``weights`` (gradients) are parts of it.
        before: forward and backward of the stages ahead of it, ``forward_before`` and ``weights_before`` parts of it;
            ``after`` and ``weights_after`` of those behind it; ``weights_first`` of the first stage, ``(n_layouts,)``.
        position: the stage's place from 0, ``behind`` how many stages come after it.
        vpp: model chunks of a stage, ``micro_batches`` of a step, ``(n_layouts,)``.
    """

    whole: FloatColumn
    forward: FloatColumn
    weights: FloatColumn
    before: FloatColumn
    after: FloatColumn
    forward_before: FloatColumn
    weights_before: FloatColumn
    weights_after: FloatColumn
    weights_first: FloatColumn
    position: IntColumn
    behind: IntColumn
    vpp: IntColumn
    micro_batches: IntColumn

    @cached_property
    def waits(self) -> FloatColumn:
        """What 1F1B's alternation waits for the stages behind."""
        return self.waits_for(self.after)

    def waits_for(self, after: FloatColumn) -> FloatColumn:
        """What it waits for stages behind whose pass takes ``after``: for the first backward, and for the last.

        ``behind`` forwards of its own fill the first wait, as many backwards the last; with fewer micro-batches there is one wait.
        """
        filled, backward = self.behind * self.forward, self.whole - self.forward
        waits: FloatColumn = np.maximum(0.0, after - filled) + np.maximum(0.0, after - self.behind * backward)
        few = self.micro_batches <= self.behind
        if few.any():
            one = np.maximum(0.0, after - (self.micro_batches - 1) * np.minimum(self.forward, backward))
            waits = np.where(few, one, waits)
        return waits


class Schedule(ABC):
    """One schedule: its bubble and the activations it keeps. Stages count from 0."""

    @abstractmethod
    def bubble(self, slots: Slots) -> FloatColumn:
        """Idle time of each stage in a step, were it the one that all others wait for, s, ``(n_stages, n_layouts)``.

        The step takes as long as the longest of them, its own work included. On equal stages the published bubbles follow.
        """

    @abstractmethod
    def in_flight(self, stage: IntColumn, pp: IntColumn, vpp: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        """Micro-batches whose activations a stage holds at its peak, in units of all the stage's layers, ``(n_layouts,)``.

        ``late``, ``(n_layouts,)``: what a micro-batch leaves for a weight gradient that runs later than its backward pass, over all of
        its activations. Only schedules that split the backward pass have such.
        """


class NoPipeline(Schedule):
    """pp = 1: nothing waits, one micro-batch is held."""

    def bubble(self, slots: Slots) -> FloatColumn:
        return np.zeros_like(slots.whole)

    def in_flight(self, stage: IntColumn, pp: IntColumn, vpp: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        return np.ones(len(pp))


class GPipe(Schedule):
    """All forwards, then all backwards (Huang et al., arXiv 1811.06965): every micro-batch is held."""

    def bubble(self, slots: Slots) -> FloatColumn:
        return slots.before + slots.after

    def in_flight(self, stage: IntColumn, pp: IntColumn, vpp: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        return micro_batches.astype(np.float64)


class OneForwardOneBackward(Schedule):
    """1F1B (Narayanan et al., arXiv 2104.04473, section 2.2): the bubble of GPipe, at most p - s micro-batches held.

    On stages that differ, the slowest waits less for faster ones behind it (``Slots.waits``).
    """

    def bubble(self, slots: Slots) -> FloatColumn:
        return slots.before + slots.waits

    def in_flight(self, stage: IntColumn, pp: IntColumn, vpp: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        held: FloatColumn = np.minimum(micro_batches, pp - stage).astype(np.float64)
        return held


class Interleaved(Schedule):
    """Interleaved 1F1B (Narayanan et al., arXiv 2104.04473, section 2.2; memory: Korthikanti et al., arXiv 2205.05198, 4.2.3).

    The bubble is v times smaller; the first stage holds 1 + (p - 1) / (p v) times 1F1B's activations. Chunks of unequal layers wait longer
    (``recurrence``).
    """

    def bubble(self, slots: Slots) -> FloatColumn:
        idle: FloatColumn = (slots.before + slots.waits) / slots.vpp
        return idle

    def in_flight(self, stage: IntColumn, pp: IntColumn, vpp: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        chunks = 2 * (pp - stage - 1) + (vpp - 1) * pp + 1
        held: FloatColumn = np.minimum(chunks, micro_batches * vpp) / vpp
        return held


class ZeroBubbleH1(Schedule):
    """ZB-H1 (Qi et al., arXiv 2401.10241, section 3): weight gradients fill the tail.

    Bubble (p - 1)(F + B - W), B being the input gradient alone: 1F1B's less 2 (p - 1) W. Stage s does s weight gradients at the end:
    either those of the slowest stage end the step, or what they let stages before it do.

    Memory: stage s holds p - s micro-batches whole, as 1F1B, and of s more what their weight gradients need (M_W of M_B, section 3.1:
    inputs of products and gradients of their outputs). The peak comes with a micro-batch's backward pass, which turns what it holds
    whole into what is left for its weight gradient: the larger of the two counts.
    """

    def bubble(self, slots: Slots) -> FloatColumn:
        until_first = slots.before - slots.weights_before - (slots.position + 1) * slots.weights + slots.weights_first
        ahead = np.maximum(until_first, slots.forward_before)
        idle: FloatColumn = ahead + slots.waits_for(slots.after - slots.weights_after)
        return idle

    def in_flight(self, stage: IntColumn, pp: IntColumn, vpp: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        whole = np.minimum(micro_batches, pp - stage)
        held: FloatColumn = whole - 1 + np.maximum(1.0, late) + np.minimum(stage, micro_batches - whole) * late
        return held


SCHEDULE_CLASSES: tuple[Schedule, ...] = (NoPipeline(), GPipe(), OneForwardOneBackward(), Interleaved(), ZeroBubbleH1())


def bubble(schedule: IntColumn, slots: Slots) -> FloatColumn:
    """The bubble of each layout's own schedule on each stage, s, ``(n_stages, n_layouts)``."""
    idle = np.zeros_like(slots.whole)
    for code, each in enumerate(SCHEDULE_CLASSES):
        chosen = schedule == code
        if chosen.any():
            idle = np.where(chosen, each.bubble(slots), idle)
    return idle


def in_flight(
    schedule: IntColumn, stage: IntColumn, pp: IntColumn, vpp: IntColumn, micro_batches: IntColumn, late: FloatColumn
) -> FloatColumn:
    """Micro-batches held by each layout's own schedule on ``stage``; ``late`` as of ``Schedule.in_flight``.

    ``stage`` is ``(n_layouts,)`` or ``(n_candidates, n_layouts)``, and so is the result.
    """
    held = np.empty(np.shape(stage))
    for code, each in enumerate(SCHEDULE_CLASSES):
        rows = np.flatnonzero(schedule == code)
        if len(rows):
            place = stage.take(rows, axis=-1)
            held[..., rows] = each.in_flight(place, pp.take(rows), vpp.take(rows), micro_batches.take(rows), late.take(rows))
    return held
