"""How errors grow outside what was measured: runs left out of a fit, and the steps that their errors tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from rapid_dse.analysis.envelope import WITHIN, boxes, with_boxes, within
from rapid_dse.analysis.fit import Runs
from rapid_dse.analysis.leaving_out import Linear
from rapid_dse.config.cluster import Cluster
from rapid_dse.config.measured_boxes import MeasuredRuns, alike
from rapid_dse.model.parameters import count
from rapid_dse.simulate.communication import nodes_of
from rapid_dse.simulate.training import prepare, step_seconds
from rapid_dse.simulate.trust import distances, error_inside, widening

FloatColumn = NDArray[np.float64]
Mask = NDArray[np.bool_]

MOST = 20  # runs that a set of evidence counts for at most: one large table must not outvote ten small ones
LEAST_LEFT, LEAST_KEPT = 3, 5


@dataclass(frozen=True)
class Evidence:
    """Runs that lie outside what a fit had seen.

    Attributes:
        name: what they are; ``errors``: predicted / measured − 1, ``(n_runs,)``; ``inside``: the error that would be expected of each
            inside, ``(n_runs,)``; ``units``: by setting how far each lies outside the nearest box, ``(n_runs,)`` each.
    """

    name: str
    errors: FloatColumn
    inside: FloatColumn
    units: Mapping[str, FloatColumn]

    def typical(self) -> float:
        """The error that ``WITHIN`` of the runs lie within."""
        return within(self.errors)

    def expected(self, steps: Mapping[str, float]) -> FloatColumn:
        """The error to expect of each run under these steps."""
        total = self.inside**2
        for name, units in self.units.items():
            total = total + widening(steps[name], self.inside) * units**2
        spread: FloatColumn = np.sqrt(total)
        return spread


def coverage(evidence: Sequence[Evidence], steps: Mapping[str, float]) -> float:
    """Share of the runs whose error is at most the one to expect, each set counting alike."""
    return float(np.mean([(np.abs(sample.errors) <= sample.expected(steps)).mean() for sample in evidence]))


def fitted_steps(evidence: Sequence[Evidence], before: Mapping[str, float]) -> dict[str, float]:
    """The steps under which errors are most likely, where an error's scale is what is to be expected of it.

    Errors have heavy tails, those of Student's t with 2 degrees of freedom, of which a share w lies within scale · w (2 / (1 − w²))^½. A
    setting of which there is no evidence keeps the step that it had.
    """
    names = [name for name in sorted(before) if any(np.any(sample.units.get(name, 0.0)) for sample in evidence)]
    quantile = WITHIN * np.sqrt(2 / (1 - WITHIN**2))

    def surprise(values: FloatColumn) -> float:
        steps = dict(before) | dict(zip(names, np.sqrt(values).tolist(), strict=True))
        total = 0.0
        for sample in evidence:
            scale = sample.expected(steps) / quantile
            total += min(MOST, len(scale)) * float(np.mean(np.log(scale) + 1.5 * np.log1p((sample.errors / scale) ** 2 / 2)))
        return total

    solution = minimize(surprise, np.full(len(names), 0.05**2), bounds=[(0.0, 1.0)] * len(names), method="L-BFGS-B")
    return dict(before) | dict(zip(names, np.sqrt(solution.x).tolist(), strict=True))


def of_runs(name: str, runs: Sequence[Runs], errors: Sequence[FloatColumn], measured: Sequence[MeasuredRuns]) -> Evidence | None:
    """What runs tell whose profile has ``measured`` behind it; None where nothing can be expected of any of them."""
    offsets: dict[str, list[FloatColumn]] = {}
    kept_errors, inside = list[FloatColumn](), list[FloatColumn]()
    for run, error in zip(runs, errors, strict=True):
        told = with_boxes(run, measured).scenario
        over = run.layouts.tp > told.hw.gpus_per_node
        for kind in np.unique(over):
            rows = over == kind
            nearest = _nearest(measured, replace(run.take(rows), scenario=told), bool(kind))
            if nearest is None:
                continue
            for setting in {*offsets, *nearest}:
                before = offsets.setdefault(setting, [np.zeros(sum(map(len, kept_errors)))])
                before.append(nearest.get(setting, np.zeros(int(rows.sum()))))
            kept_errors.append(error[rows])
            inside.append(np.full(int(rows.sum()), error_inside(told, bool(kind))))
    if not kept_errors:
        return None
    return Evidence(name, np.concatenate(kept_errors), np.concatenate(inside), {k: np.concatenate(v) for k, v in offsets.items()})


def _nearest(measured: Sequence[MeasuredRuns], run: Runs, over: bool) -> dict[str, FloatColumn] | None:
    """Distances from the box that is nearest to most of the runs, in numbers of settings and doublings; None where none can be reached."""
    n_rows, best = len(run.layouts), None
    for box in measured:
        units = distances(box, run.scenario, run.layouts, over)
        columns = {name: np.broadcast_to(np.asarray(value, np.float64), n_rows) for name, value in units.items()}
        total = sum((column.sum() for column in columns.values()), 0.0)
        if np.isfinite(total) and (best is None or total < best[0]):
            best = total, columns
    return None if best is None else best[1]


def from_leaving_out(software: str, runs: Sequence[Runs], linear: Linear, errors: Sequence[FloatColumn]) -> list[Evidence]:
    """One set of evidence for each kind of runs left out of a fit; ``errors`` of all runs by fits without their model, as ``boxes``."""
    evidence = []
    sizes = np.cumsum([len(run.layouts) for run in runs])[:-1]
    for name, left_out in _kinds(runs):
        if left_out.sum() < LEAST_LEFT or (~left_out).sum() < LEAST_KEPT:
            continue
        differences = np.full(len(left_out), np.nan)
        differences[left_out] = linear.errors_without(left_out)
        masks = np.split(left_out, sizes)
        kept = [(run.take(~mask), error[~mask]) for run, mask, error in zip(runs, masks, errors, strict=True) if not mask.all()]
        gone = [(run.take(mask), off[mask]) for run, mask, off in zip(runs, masks, np.split(differences, sizes), strict=True) if mask.any()]
        measured = boxes([run for run, _ in kept], [error for _, error in kept])
        told = of_runs(f"{software} without {name}", [run for run, _ in gone], [off for _, off in gone], measured)
        evidence += [told] if told and told.units else []
    return evidence


def _kinds(runs: Sequence[Runs]) -> Iterator[tuple[str, Mask]]:
    """What is left out one at a time: each choice where there are several, and the ends of each number by one and two doublings."""

    def column(value: Callable[[Runs], object]) -> NDArray[np.generic]:
        return np.concatenate([np.broadcast_to(np.asarray(value(run)), len(run.layouts)) for run in runs])

    choices = {
        "chip": column(lambda run: run.scenario.hw.name),
        "precision": column(lambda run: alike(run.scenario.workload.precision)),
        "zero": column(lambda run: np.where(run.layouts.dp * run.layouts.cp > 1, run.layouts.zero, -1)),
        "recompute": column(lambda run: run.layouts.recompute),
        "schedule": column(lambda run: np.where(run.layouts.pp > 1, run.layouts.schedule, -1)),
        "tensor parallelism over nodes": column(lambda run: np.where(run.layouts.tp > run.scenario.hw.gpus_per_node, 1, -1)),
        "several nodes": column(lambda run: np.where(nodes_of(run.scenario.hw, run.layouts) > 1, 1, -1)),
    }
    for name, values in choices.items():
        for value in np.unique(values):
            if value != -1 if values.dtype.kind == "i" else True:
                yield f"{name} {value}", values == value
    numbers = {
        "tp": column(lambda run: run.layouts.tp),
        "cp": column(lambda run: run.layouts.cp),
        "pp": column(lambda run: run.layouts.pp),
        "micro-batch": column(lambda run: run.layouts.micro_batch_size),
        "GPUs": column(lambda run: run.layouts.num_gpus),
        "sequence": column(lambda run: run.scenario.workload.seq_len),
        "parameters": column(lambda run: count(run.scenario.model).total),
    }
    for name, values in numbers.items():
        logs = np.log2(values.astype(np.float64))
        for doublings in (1, 2):
            yield f"the largest {name} by {doublings}", logs > logs.max() - doublings + 1e-9
            yield f"the least {name} by {doublings}", logs < logs.min() + doublings - 1e-9


def from_clusters(software: str, runs: Sequence[Runs], measured: Sequence[MeasuredRuns], reference: Cluster) -> list[Evidence]:
    """What comes of runs whose cluster is not told: each cluster's, predicted on the reference.

    Left out are clusters whose all-reduces have lost NCCL's trees: that is no cluster's state that goes untold.
    """
    samples = []
    for name in sorted({run.scenario.cluster.name for run in runs if run.scenario.cluster.trees} - {reference.name}):
        mine = [run.on(reference) for run in runs if run.scenario.cluster.name == name]
        told = of_runs(f"{software} on {name}, not told", mine, _shipped_errors(mine), measured)
        samples += [told] if told else []
    return samples


def from_unseen(software: str, runs: Sequence[Runs], measured: Sequence[MeasuredRuns]) -> list[Evidence]:
    """What runs tell that a profile has not seen, chip by chip."""
    samples = []
    for chip in sorted({run.scenario.hw.name for run in runs}):
        mine = [run for run in runs if run.scenario.hw.name == chip]
        told = of_runs(f"{software} on {chip}, never seen", mine, _shipped_errors(mine), measured) if measured else None
        samples += [told] if told else []
    return samples


def _shipped_errors(runs: Sequence[Runs]) -> list[FloatColumn]:
    """predicted / measured − 1 by the profiles as they are."""
    return [step_seconds(run.scenario, run.layouts, prepare(run.scenario, run.layouts)) / run.measured - 1 for run in runs]
