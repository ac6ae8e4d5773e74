"""The names of pipeline schedules: what ``parallel.schedule`` and ``software.offers.schedules`` take, in help, tables and codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

# By name the module of parallel/schedules/ that holds it. The place in this list is a schedule's code in columns: new ones come last.
SCHEDULE_MODULES = {
    "none": "no_pipeline",  # of pp = 1
    "gpipe": "gpipe",
    "1f1b": "one_f_one_b",
    "interleaved_1f1b": "interleaved_1f1b",
    "zero_bubble": "zero_bubble",
    "zb_v": "zb_v",
    "dualpipe_v": "dualpipe_v",
    "zb_2p": "zb_2p",
}
SCHEDULES = tuple(SCHEDULE_MODULES)
PIPELINE_SCHEDULES = tuple(name for name in SCHEDULES if name != "none")

if TYPE_CHECKING:
    ScheduleName = str
    PipelineSchedule = str
else:
    ScheduleName = Literal[SCHEDULES]
    PipelineSchedule = Literal[PIPELINE_SCHEDULES]
