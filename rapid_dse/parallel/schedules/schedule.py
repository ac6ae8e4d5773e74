"""What a pipeline schedule is: the passes that each stage runs in order, and what follows from them in closed form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rapid_dse.parallel.schedules.stage_maps import LOOPED, StageMap

IntColumn = NDArray[np.int64]
BoolColumn = NDArray[np.bool_]
FloatColumn = NDArray[np.float64]

# Kinds of passes. INPUT is a backward pass without weight gradients, which a pass of kind WEIGHTS computes later. FORWARD_BESIDE is a
# forward pass that runs together with the BACKWARD one behind it: both start when both have their inputs, and send when both are done.
FORWARD, BACKWARD, INPUT, WEIGHTS, FORWARD_BESIDE = range(5)
KINDS = 4  # that take a time of their own

Order = NDArray[np.int64]
"""The passes of a stage in the order in which it runs them, ``(3, n_passes)``: kind, micro-batch and chunk of each."""


@dataclass(frozen=True)
class Task:
    """One pass of one micro-batch through one of a stage's chunks of layers."""

    kind: int
    micro_batch: int
    chunk: int = 0


def tasks(order: Order) -> list[Task]:
    """The passes of an order as records."""
    return [Task(*task) for task in order.T.tolist()]


def passes(kind: int, micro_batches: IntColumn, chunk: IntColumn | int = 0) -> Order:
    """Passes of one kind, one after the other."""
    order = np.empty((3, len(micro_batches)), np.int64)
    order[0], order[1], order[2] = kind, micro_batches, chunk
    return order


def in_turn(*orders: Order) -> Order:
    """The first pass of each order, then the second of each, and so on; all have as many."""
    return np.stack(orders, axis=2).reshape(3, -1)


def joined(*parts: Order) -> Order:
    """Orders one after the other."""
    return np.concatenate(parts, axis=1)


def alternating(forwards: Order, backwards: Order, warm_up: int) -> Order:
    """A warm-up of forward passes, then one forward and one backward in turn, then the backward passes that are left."""
    turns = backwards.shape[1] - warm_up
    return joined(forwards[:, :warm_up], in_turn(forwards[:, warm_up:], backwards[:, :turns]), backwards[:, turns:])


@dataclass(frozen=True)
class Slots:
    """What pipeline stages spend on one micro-batch, all their model chunks together; seconds, ``(n_stages, n_layouts)``.

    The rows are those stages that may end up the slowest; ``before`` and ``after`` sum over all stages ahead of each and behind it.

    Attributes:
        whole: forward and backward of the stage itself; ``forward`` and ``weights`` (gradients) are parts of it.
        before: forward and backward of the stages ahead of it, ``forward_before`` and ``weights_before`` parts of it;
            ``after`` and ``weights_after`` of those behind it; ``weights_first`` of the first stage, ``(n_layouts,)``.
        position: the stage's place from 0, ``behind`` how many stages come after it.
        chunks: model chunks of a stage, ``micro_batches`` of a step, ``(n_layouts,)``.
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
    chunks: IntColumn
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


class Exact(Enum):
    """Where a schedule's bubble in closed form is good enough for the step; elsewhere the schedule is run pass by pass."""

    ALL_STAGES = "stages of any lengths"
    SIMILAR_STAGES = "stages whose layers a framework has split, which differ by one or two"
    EQUAL_CHUNKS = "chunks that all take the same time"
    EQUAL_PASSES = "forward pass, input gradient and weight gradient that all take the same time"


class Schedule(ABC):
    """One pipeline schedule. A new one is a file beside this one and a line in ``config/schedule_names.py``.

    Attributes:
        stage_map: which chunks of the model a stage holds.
        exact: where ``bubble`` is good enough.
        interleaves: whether it has ``parallel.vpp`` chunks a stage, at least 2; else ``fixed_chunks`` at vpp 1.
        fixed_chunks: chunks of a stage at vpp 1.
        splits_backward: whether weight gradients run later than the backward pass.
        overlaps_sends: whether a message to a neighbour is sent beside what the stage computes next; ``software.pp_overlap`` of it hides.
        pairs_passes: whether a forward pass runs together with another micro-batch's backward pass, so that experts' exchanges of one
            are sent beside what the other computes, whatever ``software.expert_overlap`` says.
        holds_all: whether a stage holds the activations of every micro-batch, however many there are.
        directions_apart: whether all forward passes run before the first backward one: what the host gets ahead in passes one way
            shortens none of the other.
        runs_on: whether a stage starts its next step when it has ended its own passes, whatever other stages still do.
        plain: whether it is what frameworks run unless told otherwise, and no setting more to get right.
    """

    stage_map: StageMap = LOOPED
    exact: Exact
    interleaves: bool = False
    fixed_chunks: int = 1
    splits_backward: bool = False
    overlaps_sends: bool = False
    pairs_passes: bool = False
    holds_all: bool = False
    directions_apart: bool = False
    runs_on: bool = False
    plain: bool = False

    def rules(self, name: str, pp: IntColumn, micro_batches: IntColumn) -> list[tuple[str, BoolColumn]]:
        """What its layouts must hold beside the rules of all: the text of each rule and where it is broken, ``(n_layouts,)``.

        Args:
            name: the schedule's name, as texts have it.
            pp: stages of each layout; ``micro_batches`` of a step.
        """
        return []

    @abstractmethod
    def bubble(self, slots: Slots) -> FloatColumn:
        """Idle time of each stage in a step, were it the one that all others wait for, s, ``(n_stages, n_layouts)``.

        The step takes as long as the longest of them, its own work included. On equal stages the published bubbles follow.
        """

    @abstractmethod
    def in_flight(self, stage: IntColumn, pp: IntColumn, chunks: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        """Micro-batches whose activations a stage holds at its peak, in units of all the stage's layers, ``(n_layouts,)``.

        ``late``, ``(n_layouts,)``: what a micro-batch leaves for a weight gradient that runs later than its backward pass, over all of
        its activations. Only schedules that split the backward pass have such.
        """

    @abstractmethod
    def order(self, stage: int, pp: int, chunks: int, micro_batches: int) -> Order:
        """The passes of a stage in the order in which it runs them."""
