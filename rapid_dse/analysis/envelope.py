"""Where measured runs lie and how far unseen ones were off, summed up as the boxes that travel with a profile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from rapid_dse.analysis.fit import Runs, folds_of
from rapid_dse.config.measured_boxes import SPANS, MeasuredRuns, alike
from rapid_dse.config.run import RECOMPUTE
from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.model.parameters import count
from rapid_dse.simulate.communication import nodes_of
from rapid_dse.simulate.trust import trust

FloatColumn = NDArray[np.float64]

WITHIN = 0.68  # share of unseen runs that shall lie within the expected error
SHRINK = 5.0  # a box's error is its own and that of all boxes, which counts as so many runs


def boxes(runs: Sequence[Runs], errors: Sequence[FloatColumn]) -> tuple[MeasuredRuns, ...]:
    """The runs summed up: a box for each chip, cluster, precision, kind of model, and for tensor parallelism within and across nodes.

    Args:
        errors: predicted / measured − 1 of each run by a fit that had not seen its model, one array a group of ``runs``.
    """
    parts: dict[tuple[Any, ...], list[tuple[Runs, FloatColumn]]] = defaultdict(list)
    for run, error in zip(runs, errors, strict=True):
        for over, rows in _by_reach(run):
            scenario = run.scenario
            key = scenario.hw.name, scenario.cluster.name, alike(scenario.workload.precision), bool(scenario.model.num_experts), over
            parts[key].append((run.take(rows), np.abs(error[rows])))
    pool = within(np.concatenate([np.abs(error) for error in errors])) if parts else 0.0
    return tuple(_box(key, [run for run, _ in box], np.concatenate([e for _, e in box]), pool) for key, box in sorted(parts.items()))


def within(errors: FloatColumn) -> float:
    """The error that a further run of the same kind stays within with a chance of ``WITHIN``: the quantile of one more than were seen."""
    return float(np.quantile(np.abs(errors), min(1.0, WITHIN * (len(errors) + 1) / len(errors))))


def _by_reach(run: Runs) -> Iterator[tuple[bool, NDArray[np.bool_]]]:
    """Runs with tensor parallelism within a node, and across nodes."""
    over = run.layouts.tp > run.scenario.hw.gpus_per_node
    yield from ((kind, over == kind) for kind in (False, True) if (over == kind).any())


def _box(key: tuple[Any, ...], runs: Sequence[Runs], errors: FloatColumn, pool: float) -> MeasuredRuns:
    chip, cluster, precision, experts, over = key
    n_runs = len(errors)
    error = np.sqrt((n_runs * within(errors) ** 2 + SHRINK * pool**2) / (n_runs + SHRINK))
    column = {name: np.concatenate([np.asarray(getattr(run.layouts, name)) for run in runs]) for name in _COLUMNS.values()}
    values = {name: column[of] for name, of in _COLUMNS.items() if name in SPANS}
    values["nodes"] = np.maximum(1, np.concatenate([nodes_of(run.scenario.hw, run.layouts) for run in runs]))
    values["seq_len"] = np.array([run.scenario.workload.seq_len for run in runs])
    values["parameters"] = np.array([count(run.scenario.model).total for run in runs])
    shared = column["dp"] * column["cp"] > 1
    return MeasuredRuns(
        chip=chip,
        architecture=runs[0].scenario.hw.architecture,
        cluster=cluster,
        precision=precision,
        experts=experts,
        tp_over_nodes=over,
        runs=n_runs,
        models=len({run.model for run in runs}),
        error=max(1e-3, float(f"{error:.3g}")),
        zero=tuple(np.unique(column["zero"][shared]).tolist()),
        recompute=tuple(RECOMPUTE[code] for code in np.unique(column["recompute"])),
        schedule=tuple(SCHEDULES[code] for code in np.unique(column["schedule"]) if code),
        **{name: (float(value.min()), float(value.max())) for name, value in values.items()},
    )


_COLUMNS = {
    "tp": "tp",
    "cp": "cp",
    "pp": "pp",
    "micro_batch": "micro_batch_size",
    "gpus": "num_gpus",
    "zero": "zero",
    "recompute": "recompute",
    "schedule": "schedule",
    "dp": "dp",
}


def expected_unseen(runs: Sequence[Runs], errors: Sequence[FloatColumn]) -> list[FloatColumn]:
    """The error to expect of each run by what the runs outside its fold say: its model is in no box.

    Args:
        errors: as ``boxes``.

    Returns:
        an array a group of ``runs``; NaN where nothing like the run is outside its fold.
    """
    marks = folds_of(runs)
    expected = [np.full(len(run.layouts), np.nan) for run in runs]
    for fold in sorted({int(software) for mark in marks for software in np.unique(mark)}):
        others = [(run.take(mark != fold), error[mark != fold]) for run, error, mark in zip(runs, errors, marks, strict=True)]
        others = [(run, error) for run, error in others if len(error)]
        measured = boxes([run for run, _ in others], [error for _, error in others])
        for expected_error, run, mark in zip(expected, runs, marks, strict=True):
            if (mark == fold).any():
                expected_error[mark == fold] = expected_of(run.take(mark == fold), measured)
    return expected


def expected_of(run: Runs, measured: Sequence[MeasuredRuns]) -> FloatColumn:
    """The error to expect of each run where ``measured`` were the runs behind its profile, ``(n_layouts,)``; NaN where there is none."""
    return trust(with_boxes(run, measured).scenario, run.layouts).expected_error


def with_boxes(run: Runs, measured: Sequence[MeasuredRuns]) -> Runs:
    """The runs under their profile with other measured runs behind it."""
    software = run.scenario.software.model_copy(update={"measured": tuple(measured)})
    return replace(run, scenario=run.scenario.model_copy(update={"software": software}))


def measured_lines(measured: Sequence[MeasuredRuns]) -> list[str]:
    """The boxes as lines of a profile's YAML."""
    what = "by chip, cluster and precision: runs, error within which 68 % of unseen ones lay, where they lie (least, largest)"
    return box_lines("measured", what, measured)


def box_lines(key: str, what: str, boxes: Sequence[BaseModel]) -> list[str]:
    """A profile's key whose value is a list of boxes, a line each; ``what`` they are stands behind the key."""
    kept = [box.model_dump(mode="json", exclude_defaults=True) for box in boxes]
    return [f"{key}:   # {what}", *(f"  - {_text(box)}" for box in kept)]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_text(part)}' for name, part in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)
