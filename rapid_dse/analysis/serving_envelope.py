"""Where measured loads lie and how far predictions of unseen ones were off: the boxes that travel with an inference profile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rapid_dse.analysis.envelope import SHRINK, box_lines, within
from rapid_dse.analysis.error_growth import LEAST_KEPT, LEAST_LEFT, Evidence
from rapid_dse.analysis.serving_fit import FIGURES, Table
from rapid_dse.analysis.serving_linear import ServedLinear, left_out
from rapid_dse.config.measured_boxes import ServedRuns, alike
from rapid_dse.model.parameters import count
from rapid_dse.simulate.served_trust import engine_count, engine_gpus, inside_of, loads_expected, units_outside, widened

FloatColumn = NDArray[np.float64]
Mask = NDArray[np.bool_]

# What a row's error is of: the first of these that was measured.
TOLD = ("tpot_s", "request_latency_s", "tokens_per_s_per_gpu", "ttft_s")
A_MODEL = 5  # loads that those of one model count for in a box: their errors go together
SPANS = ("gpus", "concurrency", "prompt", "generated", "parameters")


@dataclass(frozen=True)
class Loads:
    """Rows of one profile: its tables, what a row is (a column a setting), derivatives, and logs of all that was measured.

    ``models`` of each row; ``measured``: logs, ``(n_rows, n_figures)``, NaN where there is none; ``counts``: rows that boxes are made of.
    """

    tables: Sequence[Table]
    linear: ServedLinear
    settings: pd.DataFrame
    models: Sequence[str]
    measured: FloatColumn
    counts: Mask

    def errors(self, logs: FloatColumn) -> FloatColumn:
        """predicted / measured − 1 of the figure that tells of each row, ``(n_rows,)``; NaN where none was measured."""
        off, errors_of_loads = np.expm1(logs - self.measured), np.full(len(logs), np.nan)
        for name in reversed(TOLD):
            column = off[:, FIGURES.index(name)]
            errors_of_loads = np.where(np.isfinite(column), column, errors_of_loads)
        return errors_of_loads


def settings_of(tables: Sequence[Table]) -> pd.DataFrame:
    """What boxes are made of, a row a load."""
    parts = []
    for table in tables:
        scenario, engines = table.scenario, table.layouts
        prompt, generated = scenario.workload.lengths
        asked = np.maximum(engines.concurrency, engines.batch_size)
        columns = {
            "chip": scenario.hw.name,
            "architecture": scenario.hw.architecture or "",
            "precision": alike(scenario.workload.precision),
            "experts": bool(scenario.model.num_experts),
            "latent": bool(scenario.model.kv_lora_rank),
            "pools": engines.pooled,
            "gpus": engine_gpus(engines),
            "concurrency": np.where(asked > 0, np.maximum(1.0, asked / engine_count(engines)), np.nan),
            "prompt": float(prompt),
            "generated": float(generated),
            "parameters": float(count(scenario.model).total),
        }
        parts.append(pd.DataFrame(columns, index=range(len(engines))))
    return pd.concat(parts, ignore_index=True)


def served_boxes(settings: pd.DataFrame, models: Sequence[str], errors: FloatColumn, counts: Mask) -> tuple[ServedRuns, ...]:
    """Loads summed up: a box for each chip, precision and kind of model, for one kind of engine and for pools.

    Args:
        errors: of each row by a fit that had not seen its model; counts: the rows that count.
    """
    known = counts & np.isfinite(errors)
    if not known.any():
        return ()
    pool, off, of = within(errors[known]), np.abs(errors), np.array(models)
    parts: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    keys = zip(*(settings[name] for name in ("chip", "architecture", "precision", "experts", "latent", "pools")), strict=True)
    for row, key in enumerate(keys):
        if known[row]:
            parts[key].append(row)
    boxes = []
    for (chip, architecture, precision, experts, latent, pools), rows in sorted(parts.items()):
        weight = min(len(rows), A_MODEL * len(set(of[rows])))
        error = np.sqrt((weight * within(off[rows]) ** 2 + SHRINK * pool**2) / (weight + SHRINK))
        spans = {name: _span(settings[name].to_numpy()[rows]) for name in SPANS}
        boxes.append(
            ServedRuns(
                chip=chip,
                architecture=architecture or None,
                precision=precision,
                experts=bool(experts),
                latent=bool(latent),
                pools=bool(pools),
                loads=len(rows),
                models=len(set(of[rows])),
                error=max(1e-3, float(f"{min(error, 4.9):.3g}")),
                **spans,
            )
        )
    return tuple(boxes)


def _span(values: FloatColumn) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if len(known) else (1.0, 1.0)


def with_served(table: Table, boxes: Sequence[ServedRuns]) -> Table:
    """The loads under their profile with other measured ones behind it."""
    software = table.scenario.software.model_copy(update={"served": tuple(boxes)})
    return replace(table, scenario=table.scenario.model_copy(update={"software": software}))


def expected_by_others(loads: Loads, errors: FloatColumn) -> FloatColumn:
    """The error to expect of each row by what other models' rows say, ``(n_rows,)``; NaN where there is nothing alike."""
    models, expected = np.array(loads.models), np.full(len(errors), np.nan)
    for model in np.unique(models):
        mine = models == model
        boxes = served_boxes(loads.settings, loads.models, errors, loads.counts & ~mine)
        expected[mine] = expected_of(loads.tables, boxes)[mine]
    return expected


def expected_of(tables: Sequence[Table], boxes: Sequence[ServedRuns]) -> FloatColumn:
    """The error to expect of each row where these were the measured loads behind its profile."""
    told = [with_served(table, boxes) for table in tables]
    return np.concatenate([loads_expected(table.scenario, table.layouts)[0] for table in told])


def evidence_of(name: str, loads: Loads) -> list[Evidence]:
    """One set of evidence for each kind of loads left out of a fit."""
    unseen = loads.errors(left_out(loads.linear, loads.models))
    samples = []
    for kind, left_out_rows in _kinds(loads.settings):
        gone, kept = left_out_rows & loads.counts, loads.counts & ~left_out_rows
        if gone.sum() < LEAST_LEFT or kept.sum() < LEAST_KEPT:
            continue
        errors = loads.errors(loads.linear.without(left_out_rows))
        boxes = served_boxes(loads.settings, loads.models, unseen, kept)
        told = _told(f"{name} without {kind}", loads, gone & np.isfinite(errors), errors, boxes)
        samples += [told] if told is not None and told.units else []
    return samples


def _told(name: str, loads: Loads, rows: Mask, errors: FloatColumn, boxes: Sequence[ServedRuns]) -> Evidence | None:
    if not rows.any() or not boxes:
        return None
    inside, units, start = np.full(len(rows), np.nan), dict[str, FloatColumn](), 0
    for table in loads.tables:
        told = with_served(table, boxes)
        here = slice(start, start + len(table.rows))
        start = here.stop
        inside[here] = inside_of(told.scenario, told.layouts)
        size = float(count(told.scenario.model).total)
        near = units_outside(boxes, told.scenario, told.layouts, size)
        best = widened(near, inside[here], dict.fromkeys(near, 1.0)).argmin(axis=0)
        for setting, column in near.items():
            units.setdefault(setting, np.zeros(len(rows)))[here] = column[best, np.arange(len(best))]
    return Evidence(name, errors[rows], inside[rows], {key: column[rows] for key, column in units.items() if column[rows].any()})


def _kinds(settings: pd.DataFrame) -> list[tuple[str, Mask]]:
    """What is left out one at a time: each choice where there are several, and the ends of each number by one and two doublings."""
    kinds = []
    for name in ("chip", "architecture", "precision", "experts", "latent", "pools"):
        values = settings[name].to_numpy()
        kinds += [(f"{name} {value}", values == value) for value in pd.unique(values)] if len(pd.unique(values)) > 1 else []
    for name in SPANS:
        logs = np.log2(settings[name].to_numpy(float))
        for doublings in (1, 2):
            kinds.append((f"the largest {name} by {doublings}", logs > np.nanmax(logs) - doublings + 1e-9))
            kinds.append((f"the least {name} by {doublings}", logs < np.nanmin(logs) + doublings - 1e-9))
    return kinds


def served_lines(boxes: Sequence[ServedRuns]) -> list[str]:
    """The boxes as lines of a profile's YAML."""
    what = "by chip, precision and kind of model: loads, error within which 68 % of unseen ones lay, where they lie"
    return box_lines("served", what, boxes)
