"""The pipeline of a row: when each stage runs which pass, and how long it waits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rapid_dse.analysis.report import svg_charts as charts
from rapid_dse.analysis.report.study_jobs import Shown
from rapid_dse.analysis.report.study_sections import ReportSection
from rapid_dse.analysis.report.svg_scales import Values
from rapid_dse.parallel.lanes import BACKWARDS, FORWARDS, GRADIENTS, Lane, lanes_of
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.training import pipeline_passes
from rapid_dse.sweep import figures

MOST_PASSES = 150_000  # of a step that is drawn
MOST_LANES = 32  # stages that are drawn
_SPANS = 200  # passes of a stage up to which the whole step is drawn, else its beginning and its end
_KINDS = {"forward": FORWARDS, "backward": BACKWARDS, "weights": GRADIENTS}
_NAMES = {"forward": "forward", "backward": "backward", "weights": "weight gradients"}


def pipeline_of(row: Shown, name: str) -> Iterator[ReportSection]:
    """The lanes of a row that has a pipeline; nothing where it has none, or its passes cannot be priced by closed forms."""
    if row.portion is None or not isinstance(row.portion.layouts, Layouts) or row.portion.layouts.pp[0] == 1:
        return
    layout = row.portion.layouts
    pp, chunks, micro_batches = (int(column[0]) for column in (layout.pp, layout.chunks, layout.num_micro_batches))
    if 2 * pp * chunks * micro_batches > MOST_PASSES:
        return
    try:
        seconds = pipeline_passes(row.portion.scenario, layout)
    except ValueError:  # a network without closed forms
        return
    yield _section(lanes_of(int(layout.schedule[0]), pp, chunks, micro_batches, seconds), row, name)


def _section(lanes_of_stages: Sequence[Lane], row_of_job: Shown, name: str) -> ReportSection:
    end = max(float(lane.end[-1]) for lane in lanes_of_stages)
    drawn, split = lanes_of_stages[:MOST_LANES], any(np.isin(lane.order[0], GRADIENTS).any() for lane in lanes_of_stages)
    kinds = {kind: of for kind, of in _KINDS.items() if kind != "weights" or split}
    rows = [
        [str(stage), *(figures.seconds(lane.busy(of)) for of in kinds.values()), figures.seconds(max(0.0, end - _busy(lane)))]
        for stage, lane in enumerate(lanes_of_stages)
    ]
    head = ["stage", *(_NAMES[kind] for kind in kinds), "waits"]
    title = "Pipeline of the winner: passes of each stage"
    texts = [", ".join(f"{what} {figure}" for what, figure in zip(head, row, strict=True)) for row in rows]
    lanes = [
        charts.LaneSpans(str(stage), texts[stage], {kind: _spans(lane, of) for kind, of in kinds.items()})
        for stage, lane in enumerate(drawn)
    ]
    windows = _windows(lanes_of_stages, end)
    frame = charts.Frame(f"{name}-pipeline", title, f"{len(lanes_of_stages)} stages, {figures.seconds(end)}")
    picture = charts.lanes(frame, lanes, windows, figures.seconds)
    rest = float(row_of_job.row["step_time_s"]) - end
    note = f"{figures.seconds(end)} of passes with their sends"
    note += f"; gradients, optimizer and host add {figures.seconds(rest)} to the step." if rest > 0 else "."
    note += " Time in the middle is left out: the pattern goes on." if len(windows) > 1 else ""
    note += f" The first {MOST_LANES} of {len(lanes_of_stages)} stages are drawn." if len(lanes_of_stages) > MOST_LANES else ""
    return ReportSection(title, note, picture, head, rows, [(_NAMES[kind], f"span {kind}") for kind in kinds])


def _busy(lane: Lane) -> float:
    return float((lane.end - lane.begin).sum())


def _spans(lane: Lane, kinds: tuple[int, ...]) -> tuple[Values, Values]:
    of = np.isin(lane.order[0], kinds)
    return lane.begin[of], lane.end[of]


def _windows(lanes: Sequence[Lane], end: float) -> list[tuple[float, float]]:
    """The times that are drawn: all, or the beginning and the end of a step of many passes."""
    passes = max(len(lane.begin) for lane in lanes)
    if passes <= _SPANS:
        return [(0.0, end)]
    part = 0.5 * end * _SPANS / passes
    return [(0.0, part), (end - part, end)]
