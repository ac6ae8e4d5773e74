"""Pipeline schedules, one a file: the rule, the bubble, what is in flight, the order of passes and the chunks that a stage holds.

``SCHEDULE_CLASSES`` has them in the order of ``config.schedule_names.SCHEDULES``, whose indices stand for them in columns.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.schedule_names import SCHEDULE_MODULES, SCHEDULES
from rapid_dse.parallel.schedules.schedule import IntColumn, Schedule
from rapid_dse.parallel.schedules.stage_maps import StageMap

SCHEDULE_CLASSES: tuple[Schedule, ...] = tuple(import_module(f"{__name__}.{module}").SCHEDULE for module in SCHEDULE_MODULES.values())
STAGE_MAPS: tuple[StageMap, ...] = tuple(dict.fromkeys(schedule.stage_map for schedule in SCHEDULE_CLASSES))
NONE, USUAL, USUAL_INTERLEAVED = (SCHEDULES.index(name) for name in ("none", "1f1b", "interleaved_1f1b"))


def schedule_of(name: str) -> Schedule:
    """The schedule of a name.

    Raises:
        ValueError: a name that no schedule has.
    """
    if name not in SCHEDULES:
        raise ValueError(f"parallel.schedule={name}: no such schedule; allowed: {', '.join(SCHEDULES)}")
    return SCHEDULE_CLASSES[SCHEDULES.index(name)]


def of_each(attribute: Callable[[Schedule], int]) -> NDArray[np.int64]:
    """A number of each schedule, in the order of codes: what a column of codes is looked up in."""
    return np.array([attribute(schedule) for schedule in SCHEDULE_CLASSES], np.int64)


CHUNKS, MAPS = of_each(lambda schedule: schedule.fixed_chunks), of_each(lambda schedule: STAGE_MAPS.index(schedule.stage_map))
INTERLEAVES, SPLITS_BACKWARD, OVERLAPS_SENDS, PAIRS_PASSES, HOLDS_ALL, RUNS_ON = (
    np.array([getattr(schedule, name) for schedule in SCHEDULE_CLASSES], bool)
    for name in ("interleaves", "splits_backward", "overlaps_sends", "pairs_passes", "holds_all", "runs_on")
)


def by_map(stage_map: IntColumn, part: Callable[[StageMap], NDArray[np.int64]]) -> NDArray[np.int64]:
    """What each layout's own stage map says; ``stage_map`` indexes ``STAGE_MAPS``, ``part`` gives arrays that end in its axis."""
    part_of_map = part(STAGE_MAPS[0])
    for code in range(1, len(STAGE_MAPS)):
        chosen = stage_map == code
        if chosen.any():
            part_of_map = np.where(chosen, part(STAGE_MAPS[code]), part_of_map)
    return part_of_map
