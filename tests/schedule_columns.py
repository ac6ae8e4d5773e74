"""What schedules say, for tables whose layouts have each their own."""

from __future__ import annotations

import numpy as np

from rapid_dse.parallel.schedules import SCHEDULE_CLASSES
from rapid_dse.parallel.schedules.schedule import FloatColumn, IntColumn, Slots


def bubble(schedule: IntColumn, slots: Slots) -> FloatColumn:
    """The bubble of each layout's own schedule on each stage, s, ``(n_stages, n_layouts)``."""
    idle = np.zeros_like(slots.whole)
    for code, schedule_class in enumerate(SCHEDULE_CLASSES):
        chosen = schedule == code
        if chosen.any():
            idle = np.where(chosen, schedule_class.bubble(slots), idle)
    return idle


def in_flight(
    schedule: IntColumn, stage: IntColumn, pp: IntColumn, chunks: IntColumn, micro_batches: IntColumn, late: FloatColumn
) -> FloatColumn:
    """Micro-batches held by each layout's own schedule on ``stage``; ``late`` as of ``Schedule.in_flight``.

    ``stage`` is ``(n_layouts,)`` or ``(n_candidates, n_layouts)``, and so is the result.
    """
    held_micro_batches = np.empty(np.shape(stage))
    for code, schedule_class in enumerate(SCHEDULE_CLASSES):
        rows = np.flatnonzero(schedule == code)
        if len(rows):
            place = stage.take(rows, axis=-1)
            held_micro_batches[..., rows] = schedule_class.in_flight(
                place, pp.take(rows), chunks.take(rows), micro_batches.take(rows), late.take(rows, axis=-1)
            )
    return held_micro_batches
