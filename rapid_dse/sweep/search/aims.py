"""What a study is after: objectives with their directions, constraints, and bounds of objectives from a bound of the step time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.config.units import UNITS, to_si
from rapid_dse.model.architecture import model_flops_per_token
from rapid_dse.parallel.layouts import CODES, COLUMN_OF, Layouts
from rapid_dse.simulate.results import Priced
from rapid_dse.sweep import ranking

FloatColumn = NDArray[np.float64]

FITS = "fits"
_CONSTRAINT = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(<=|>=)\s*(\S.*?)\s*")
_UNITS = (("_bytes", "bytes"), ("_s", "s"))


@dataclass(frozen=True)
class Objective:
    """A column; ``descending`` where more is better (a leading '-', or a rate)."""

    text: str
    name: str
    descending: bool

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """The word that Optuna has for it."""
        return "maximize" if self.descending else "minimize"


@dataclass(frozen=True)
class Constraint:
    """``sign`` · (column − limit) ≤ 0; of ``fits``, ``limit`` is the share of hw.memory.usable that the peak must leave free."""

    text: str
    name: str
    sign: float = 1.0
    limit: float = 0.0

    def excess(self, row: Mapping[str, Any], usable: float) -> float:
        """How far a row is beyond the limit, as a share of it; ≤ 0 is feasible."""
        if self.name == FITS:
            return float(row["peak_memory_bytes"]) / (usable * (1 - self.limit)) - 1.0
        value = row.get(self.name)
        if value is None:
            raise ValueError(f"search.constraints: {self.text}: {self.name} has no value in this workload")
        return self.sign * (float(value) - self.limit) / (abs(self.limit) or 1.0)

    def broken(self, column: FloatColumn) -> NDArray[np.bool_]:
        """Which rows are beyond the limit or have no value (NaN), ``(n_rows,)``; not for ``fits``."""
        broken: NDArray[np.bool_] = ~(self.sign * (column - self.limit) <= 0)
        return broken


@dataclass(frozen=True)
class Aims:
    """Objectives in order, and constraints, fits first."""

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]

    def values(self, row: Mapping[str, Any]) -> list[float]:
        """The row's objectives as they are.

        Raises:
            ValueError: where one has no value, as ttft_s of a training step.
        """
        for objective in self.objectives:
            if row.get(objective.name) is None:
                raise ValueError(f"search.objectives={objective.text}: has no value in this workload; allowed: a column that has one")
        return [float(row[objective.name]) for objective in self.objectives]

    def losses(self, row: Mapping[str, Any]) -> FloatColumn:
        """The row's objectives, less is better, ``(n_objectives,)``."""
        return np.array([-float(row[o.name]) if o.descending else float(row[o.name]) for o in self.objectives])


def read_aims(objectives: Sequence[str], constraints: Sequence[str], keys: Sequence[str], headroom: float = 0.0) -> Aims:
    """Parses search.objectives and search.constraints.

    Args:
        headroom: the share of usable memory that must stay free.
        keys: override keys outside the layout that are columns of the results and hold numbers.

    Raises:
        ValueError: a name that is no column, a text that is no constraint, no objective at all.
    """
    columns = [key for key, name in COLUMN_OF.items() if name not in CODES]
    names = [*(name for name in Priced.__dataclass_fields__ if name != FITS), *columns, "elapsed_s", *keys]
    if not objectives:
        raise ValueError("search.objectives=[]; allowed: at least one column, as step_time_s")
    aims = [Objective(o, ranking.require_name(o, names, "search.objectives"), ranking.descending(o)) for o in objectives]
    if len({o.name for o in aims}) < len(aims):
        raise ValueError(f"search.objectives={list(objectives)}: a column stands there twice; allowed: each once")
    parsed = [constraint(text, names) for text in constraints if text.strip() != FITS]
    fits = f"{FITS} with {100 * headroom:g} % free" if headroom else FITS
    return Aims(tuple(aims), (Constraint(fits, FITS, limit=headroom), *parsed))


def constraint(text: str, names: Sequence[str], option: str = "search.constraints") -> Constraint:
    """Parses one constraint on a column of ``names``.

    Raises:
        ValueError: where it is none; ``option`` gave it.
    """
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        raise ValueError(f"{option}: {text!r} is no constraint; allowed: fits, or column<=number or column>=number")
    name, sign, number = match.groups()
    ranking.require_name(name, names, option)
    unit = next((unit for suffix, unit in _UNITS if name.endswith(suffix) and "tokens" not in name), None)
    try:
        limit = to_si(number, unit) if unit in UNITS else float(number)
    except ValueError as error:
        raise ValueError(f"{option}: {text!r}: {error}") from None
    if not math.isfinite(limit):
        raise ValueError(f"{option}: {text!r}: {number} is no limit; allowed: a finite number")
    return Constraint(f"{name}{sign}{number}", name, 1.0 if sign == "<=" else -1.0, limit)


def bounds(aims: Aims, scenario: Scenario, layouts: Layouts, seconds: FloatColumn, peak: FloatColumn) -> FloatColumn:
    """Losses that no layout can come below, ``(n_objectives, n_layouts)``; −inf: not known, inf: it cannot meet the constraints.

    Args:
        seconds: what a step takes at least, ``(n_layouts,)``.
        peak: the bytes that a GPU holds, which are known without a simulation, ``(n_layouts,)``.
    """
    known, unknown = _least(scenario, layouts, seconds, peak), np.full(len(layouts), -np.inf)
    losses = np.array([known.get((objective.name, objective.descending), unknown) for objective in aims.objectives])
    fits, *others = aims.constraints
    hopeless = peak > scenario.hw.memory.usable * (1 - fits.limit)
    for constraint in others:
        hopeless |= known.get((constraint.name, constraint.sign < 0), unknown) > constraint.sign * constraint.limit
    losses[:, hopeless] = np.inf
    return losses


def _least(scenario: Scenario, layouts: Layouts, seconds: FloatColumn, peak: FloatColumn) -> dict[tuple[str, bool], FloatColumn]:
    """The least that a column can be, and with True the least that its negative can be."""
    gpus = layouts.num_gpus.astype(float)
    rate = layouts.global_batch_size * float(scenario.workload.seq_len) / seconds
    flops = model_flops_per_token(scenario.model, scenario.workload) / scenario.hw.peak_flops(scenario.workload.precision)
    numbers = {key: getattr(layouts, name).astype(float) for name, key in layouts.keys.items() if name not in CODES}
    exact = {"peak_memory_bytes": peak, **numbers}
    return {
        ("step_time_s", False): seconds,
        ("cost_usd", False): scenario.hw.price / 3600 * gpus * seconds,
        ("tokens_per_s", True): -rate,
        ("tokens_per_s_per_gpu", True): -rate / gpus,
        ("mfu", True): -rate / gpus * flops,
        **{(name, False): column for name, column in exact.items()},
        **{(name, True): -column for name, column in exact.items()},
    }
