"""A pipeline's step as lanes, one a stage: when each pass of the schedule's order begins and ends.

The recurrence is that of ``recurrence.py``, which gives the length of the step alone, for many layouts at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rapid_dse.parallel.schedules import SCHEDULE_CLASSES
from rapid_dse.parallel.schedules.schedule import BACKWARD, FORWARD, FORWARD_BESIDE, INPUT, WEIGHTS, Order

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Lane:
    """A stage's passes in their order: what each is, and its seconds from the step's first pass on, ``(n_passes,)`` each."""

    order: Order
    begin: FloatColumn
    end: FloatColumn

    def busy(self, kinds: tuple[int, ...]) -> float:
        """Seconds in passes of these kinds."""
        of = np.isin(self.order[0], kinds)
        return float((self.end - self.begin)[of].sum())


Departures = dict[tuple[bool, int, int], float]  # when an activation (or a gradient: False) of a micro-batch leaves a place


def lanes_of(code: int, pp: int, chunks: int, micro_batches: int, seconds: FloatColumn) -> list[Lane]:
    """The lanes of a step of a schedule.

    Args:
        code: the schedule's; ``chunks``: of a stage.
        seconds: of each pass with the send behind it, ``(pass_kinds, pp * chunks)`` by kind and place.
    """
    schedule = SCHEDULE_CLASSES[code]
    places = schedule.stage_map.places(pp, chunks).tolist()
    orders = [schedule.order(stage, pp, chunks, micro_batches) for stage in range(pp)]
    programs = [order.T.tolist() for order in orders]
    spans: list[list[tuple[float, float]]] = [[] for _ in range(pp)]
    given: Departures = {}
    ready = partial(_ready, given, pp * chunks - 1)
    while True:
        stuck = True
        for stage, program in enumerate(programs):
            while len(spans[stage]) < len(program):
                step = _next(program, len(spans[stage]))
                inputs = [ready(kind, micro_batch, places[stage][chunk]) for kind, micro_batch, chunk in step]
                now = spans[stage][-1][1] if spans[stage] else 0.0
                if any(column is None for column in inputs):
                    break
                begin = max([now, *(column for column in inputs if column is not None)])
                for kind, _, chunk in step:
                    end = begin + float(seconds[FORWARD if kind == FORWARD_BESIDE else kind, places[stage][chunk]])
                    spans[stage].append((begin, end))
                    begin = end
                for kind, micro_batch, chunk in step:  # of two that run together what both give is there when both have ended
                    if kind != WEIGHTS:
                        given[kind in (FORWARD, FORWARD_BESIDE), micro_batch, places[stage][chunk]] = begin
                stuck = False
        if all(len(span) == len(program) for span, program in zip(spans, programs, strict=True)):
            break
        if stuck:
            raise ValueError("a schedule whose stages wait for each other")
    return [Lane(order, *np.array(span).T) for order, span in zip(orders, spans, strict=True)]


def _ready(given: Departures, last: int, kind: int, micro_batch: int, place: int) -> float | None:
    """When the input of a pass is there; None where it is not made yet. ``last``: the place that turns activations into gradients."""
    if kind in (FORWARD, FORWARD_BESIDE):
        return given.get((True, micro_batch, place - 1)) if place else 0.0
    if kind == WEIGHTS:
        return 0.0
    return given.get((False, micro_batch, place + 1) if place < last else (True, micro_batch, place))


def _next(program: list[list[int]], at: int) -> list[list[int]]:
    """The pass at a place of a stage's order; with the one behind it where both run together."""
    return program[at : at + (2 if program[at][0] == FORWARD_BESIDE else 1)]


FORWARDS, BACKWARDS, GRADIENTS = (FORWARD, FORWARD_BESIDE), (BACKWARD, INPUT), (WEIGHTS,)
