"""Where measured loads lie and how far predictions of unseen ones were off: the boxes that travel with an inference profile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rapid_dse.analysis.envelope import WITHIN, box_lines
from rapid_dse.analysis.error_growth import LEAST_KEPT, LEAST_LEFT, Evidence
from rapid_dse.analysis.serving_fit import FIGURES, Table
from rapid_dse.analysis.serving_linear import ServedLinear
from rapid_dse.config.measured_boxes import Sent, ServedRuns, alike
from rapid_dse.model.parameters import count
from rapid_dse.simulate.inference.amplified import amplifications
from rapid_dse.simulate.served_growth import SERVED_ERRORS, SERVED_STEPS
from rapid_dse.simulate.served_trust import SENT, AskedLoads, engine_count, engine_gpus, inside_of, sent, steps_expected

FloatColumn = NDArray[np.float64]
Mask = NDArray[np.bool_]

# What a row's error is of: the first of these that was measured.
TOLD = ("tpot_s", "request_latency_s", "tokens_per_s_per_gpu", "ttft_s")
FEW = 5  # loads that make a model count as one: fewer of it count for less, and more for no more, since their errors go together
SHRINK = 3.0  # models that what all loads of a kind have told counts for beside those of a box, and what all kinds', beside a kind's
SPANS = ("gpus", "concurrency", "prompt", "generated", "parameters")


@dataclass(frozen=True)
class Loads:
    """Rows of one profile: its tables, what a row is (a column a setting), derivatives, and logs of all that was measured.

    ``models`` of each row; ``measured``: logs, ``(n_rows, n_figures)``, NaN where there is none; ``counts``: rows that boxes are made of;
    ``amplified``: how much an error of the engine's steps grows in the time between tokens.
    """

    tables: Sequence[Table]
    linear: ServedLinear
    settings: pd.DataFrame
    models: Sequence[str]
    measured: FloatColumn
    counts: Mask
    amplified: FloatColumn

    def of_steps(self, logs: FloatColumn) -> FloatColumn:
        """``errors`` as those of the engine's steps, from which in an open loop larger ones of tokens come, ``(n_rows,)``."""
        of_steps: FloatColumn = self.errors(logs) / self.amplified
        return of_steps

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
            "sent": np.array(SENT)[sent(AskedLoads.from_tables([(scenario, engines)]))],
            "gpus": engine_gpus(engines),
            "concurrency": np.where(asked > 0, np.maximum(1.0, asked / engine_count(engines)), np.nan),
            "prompt": float(prompt),
            "generated": float(generated),
            "parameters": float(count(scenario.model).total),
        }
        parts.append(pd.DataFrame(columns, index=range(len(engines))))
    return pd.concat(parts, ignore_index=True)


def amplified_of(tables: Sequence[Table]) -> FloatColumn:
    """How much an error of the engine's steps grows in the time between tokens of each row, ``(n_rows,)``; 1 where that is not known."""
    known = np.concatenate(amplifications([(table.scenario, table.layouts) for table in tables]))
    return np.where(np.isfinite(known), known, 1.0)


def typical_errors(samples: Sequence[tuple[pd.DataFrame, Sequence[str], FloatColumn]]) -> dict[Sent, float]:
    """The error to expect of a further model's loads, by how requests come, over all frameworks, each one's models counting alike.

    It leans on that of all loads, which counts as ``SHRINK`` models: of few models the next one's error is not known well.

    Args:
        samples: of each framework the settings of its loads, their models and their errors by a fit that had not seen the model.
    """
    parts: dict[Sent, list[tuple[FloatColumn, FloatColumn]]] = {}
    for settings, models, off in samples:
        for kind in SENT:
            rows = (settings["sent"].to_numpy() == kind) & np.isfinite(off)
            if rows.any():
                parts.setdefault(kind, []).append((np.abs(off[rows]), weights_of(np.array(models)[rows])))
    merged = {kind: tuple(map(np.concatenate, zip(*part, strict=True))) for kind, part in parts.items()}
    if not merged:
        return {}
    every = quantile(*map(np.concatenate, zip(*merged.values(), strict=True)))
    return {kind: _leaning(errors, weights, every) for kind, (errors, weights) in merged.items()}


def weights_of(models: NDArray[Any]) -> FloatColumn:
    """What each load counts for: those of a model together for one, or for less where they are few."""
    _, kind, times = np.unique(models, return_inverse=True, return_counts=True)
    weights: FloatColumn = (np.minimum(1.0, times / FEW) / times)[kind]
    return weights


def quantile(errors: FloatColumn, weights: FloatColumn) -> float:
    """The error within which loads of ``WITHIN`` of all weight lie."""
    order = np.argsort(errors)
    below = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    return float(np.interp(WITHIN, below, errors[order]))


def served_boxes(
    settings: pd.DataFrame, models: Sequence[str], errors: FloatColumn, counts: Mask, typical: Mapping[Sent, float] = SERVED_ERRORS
) -> tuple[ServedRuns, ...]:
    """Loads summed up: a box for each chip, precision and kind of model, for one kind of engine and for pools.

    Args:
        errors: of each row by a fit that had not seen its model; counts: the rows that count; typical: errors of all frameworks' loads.
    """
    known = counts & np.isfinite(errors)
    off, of, came = np.abs(errors), np.array(models), settings["sent"].to_numpy()
    parts: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    keys = zip(*(settings[name] for name in ("chip", "architecture", "precision", "experts", "latent", "pools")), strict=True)
    for row, key in enumerate(keys):
        if known[row]:
            parts[key].append(row)
    boxes = []
    for (chip, architecture, precision, experts, latent, pools), members in sorted(parts.items()):
        rows = np.array(members)
        by_kind = {kind: rows[came[rows] == kind] for kind in SENT if (came[rows] == kind).any()}
        own = {kind: _leaning(off[mine], weights_of(of[mine]), typical[kind]) for kind, mine in by_kind.items()}
        every = np.average(np.log(list(own.values())), weights=[len(mine) for mine in by_kind.values()])
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
                error=_rounded(float(np.exp(every))),
                errors={kind: _rounded(error) for kind, error in own.items()},
                **{name: _span(settings[name].to_numpy()[rows]) for name in SPANS},
            )
        )
    return tuple(boxes)


def _leaning(errors: FloatColumn, weights: FloatColumn, typical: float) -> float:
    """The error to expect of a further model: the loads' own and the typical one, in logs, which counts as ``SHRINK`` models."""
    models = float(weights.sum())
    logs = models * np.log(max(1e-3, quantile(errors, weights))) + SHRINK * np.log(typical)
    return float(np.exp(logs / (models + SHRINK)))


def _rounded(error: float) -> float:
    return max(1e-3, float(f"{min(error, 4.9):.3g}"))


def _span(values: FloatColumn) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if len(known) else (1.0, 1.0)


def with_served(table: Table, boxes: Sequence[ServedRuns]) -> Table:
    """The loads under their profile with other measured ones behind it."""
    software = table.scenario.software.model_copy(update={"served": tuple(boxes)})
    return replace(table, scenario=table.scenario.model_copy(update={"software": software}))


def expected_by_others(loads: Loads, errors: FloatColumn) -> FloatColumn:
    """The error to expect of each row by what other models' rows say, ``(n_rows,)``; NaN where there is nothing alike.

    ``errors``: of the engine's steps (``Loads.of_steps``), of fits that had not seen a row's model.
    """
    models, expected = np.array(loads.models), np.full(len(errors), np.nan)
    for model in np.unique(models):
        mine = models == model
        boxes = served_boxes(loads.settings, loads.models, errors, loads.counts & ~mine)
        expected[mine] = expected_of(loads, boxes)[mine]
    return expected


def expected_of(loads: Loads, boxes: Sequence[ServedRuns], steps: Mapping[str, float] = SERVED_STEPS) -> FloatColumn:
    """The error to expect of each row where these were the measured loads behind its profile; NaN where there are none."""
    if not boxes:
        return np.full(len(loads.models), np.nan)
    told = [with_served(table, boxes) for table in loads.tables]
    asked = (AskedLoads.from_tables([(table.scenario, table.layouts)]) for table in told)
    return np.concatenate([steps_expected(one, steps)[0] for one in asked]) * loads.amplified


def evidence_of(name: str, loads: Loads, unseen: FloatColumn, typical: Mapping[Sent, float] = SERVED_ERRORS) -> list[Evidence]:
    """One set of evidence for each kind of loads left out of a fit, each load predicted by a fit that has not seen its model either.

    A box has the error of models that its fit had not seen, so that a step outside is what comes on top of that.

    Args:
        unseen: errors of the engine's steps by fits without each row's model; typical: as of ``served_boxes``.
    """
    samples, models, predicted = [], np.array(loads.models), dict[bytes, FloatColumn]()
    for kind, rows_of_kind in _kinds(loads.settings):
        parts = []
        for model in np.unique(models[rows_of_kind & loads.counts]):
            left_out = rows_of_kind | (models == model)
            gone, kept = rows_of_kind & (models == model) & loads.counts, loads.counts & ~left_out
            if kept.sum() >= LEAST_KEPT:
                if left_out.tobytes() not in predicted:  # several kinds may be the same loads
                    predicted[left_out.tobytes()] = loads.of_steps(loads.linear.without(left_out))
                errors = predicted[left_out.tobytes()]
                boxes = served_boxes(loads.settings, loads.models, unseen, kept, typical)
                parts.append(_told(f"{name} without {kind}", loads, gone & np.isfinite(errors), errors, boxes))
        told = _together([part for part in parts if part is not None])
        samples += [told] if told is not None and told.units and len(told.errors) >= LEAST_LEFT else []
    return samples


def _together(parts: Sequence[Evidence]) -> Evidence | None:
    """Sets of evidence as one."""
    if not parts:
        return None
    names = {name for part in parts for name in part.units}
    units = {name: np.concatenate([part.units.get(name, np.zeros(len(part.errors))) for part in parts]) for name in sorted(names)}
    errors, inside = np.concatenate([part.errors for part in parts]), np.concatenate([part.inside for part in parts])
    return Evidence(parts[0].name, errors, inside, units)


def _told(name: str, loads: Loads, rows: Mask, errors: FloatColumn, boxes: Sequence[ServedRuns]) -> Evidence | None:
    if not rows.any() or not boxes:
        return None
    inside, units, start = np.full(len(rows), np.nan), dict[str, FloatColumn](), 0
    for table in loads.tables:
        here = slice(start, start + len(table.rows))
        start = here.stop
        if rows[here].any():
            told = with_served(table, boxes)
            asked = AskedLoads.from_tables([(told.scenario, told.layouts)])
            _, best, near = steps_expected(asked)
            inside[here] = inside_of(asked)
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
    what = "by chip, precision and kind of model: loads, error within which 68 % of unseen models' lay, where they lie"
    return box_lines("served", what, boxes)
