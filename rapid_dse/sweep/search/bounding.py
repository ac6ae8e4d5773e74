"""What need not be simulated: layouts that a lower bound of the step time shows to be beaten, and the proof of the winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rapid_dse.model.architecture import split_of
from rapid_dse.parallel.stages import stages
from rapid_dse.simulate.bounds import lower_bound
from rapid_dse.simulate.memory import peak_memory
from rapid_dse.sweep.search.aims import Aims, bounds
from rapid_dse.sweep.search.study_space import SearchSpace, Variant

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Proof:
    """How sure the best is.

    Attributes:
        infeasible: layouts that were not priced because they cannot meet the constraints.
        beaten: layouts that were not priced because a bound shows that others are better.
        unbeaten: layouts that might still win.
        total: layouts of the space.
        gap: by how much of its value the first objective might still be beaten; None where no bound says.
    """

    infeasible: int
    beaten: int
    unbeaten: int
    total: int
    gap: float | None

    def text(self) -> str:
        """One line."""
        head = (
            f"{self.infeasible + self.beaten:,} of {self.total:,} layouts skipped: {self.infeasible:,} cannot meet the constraints, "
            f"a lower bound shows that {self.beaten:,} cannot win"
        )
        if self.unbeaten == 0:
            return f"{head}; the winner is proven"
        may = (
            "it is not known by how much the best may be beaten"
            if self.gap is None
            else f"the best may be beaten by {100 * self.gap:.1f} %"
        )
        return f"{head}; {self.unbeaten:,} were not tried: {may}"


@dataclass
class Bounding:
    """Bounds of every layout of the variants that the study has come to.

    Attributes:
        beaten: whether what a bound shows to be beaten is left out too, or only what cannot meet the constraints.
    """

    aims: Aims
    beaten: bool
    _front: list[FloatColumn] = field(default_factory=list)
    _learned: list[FloatColumn] = field(default_factory=list)  # every point that has been on the front
    _bounds: dict[tuple[Any, ...], FloatColumn] = field(default_factory=dict)
    _applied: dict[tuple[Any, ...], int] = field(default_factory=dict)  # how many of those a variant's layouts were held against

    def learn(self, row: Mapping[str, Any]) -> None:
        """Takes a feasible row into account."""
        losses = self.aims.losses(row)
        if any((other <= losses).all() for other in self._front):
            return
        self._front = [other for other in self._front if not (losses <= other).all()]
        self._front.append(losses)
        self._learned.append(losses)

    def bar(self, variant: Variant) -> None:
        """Marks the variant's layouts that cannot win any more, once there is anything that they could lose against."""
        applied = self._applied.get(variant.name, 0)
        if applied == len(self._learned) or not len(variant.pool):
            return
        self._applied[variant.name] = len(self._learned)
        variants = self._of(variant)
        hopeless = _beaten(variants, self._learned[applied:]) if self.beaten else np.isposinf(variants[0])
        variant.hopeless |= hopeless & ~variant.tried

    def beaten_by(self, variant: Variant, row: int) -> float | None:
        """The first objective's bound for one layout where that shows it to be beaten, else None."""
        if row < 0 or not self._front:
            return None
        bounds = self._computed(variant, np.array([row]))
        return float(bounds[0, 0]) if _beaten(bounds, self._front)[0] else None

    def _of(self, variant: Variant) -> FloatColumn:
        if variant.name not in self._bounds:
            self._bounds[variant.name] = self._computed(variant, np.arange(len(variant.pool)))
        return self._bounds[variant.name]

    def _computed(self, variant: Variant, rows: NDArray[np.int64]) -> FloatColumn:
        scenario, layouts = variant.setting.scenario, variant.pool.layouts.take(rows)
        split = stages(split_of(scenario), layouts)
        return bounds(self.aims, scenario, layouts, lower_bound(scenario, layouts), peak_memory(scenario, layouts, split).peak)

    def proof(self, space: SearchSpace) -> Proof | None:
        """What is left of a countable space; None where nothing is known to compare with, or the space has no end."""
        if not space.countable or not self._front:
            return None
        infeasible = beaten = unbeaten = total = 0
        lowest = np.inf
        for variant in space.variants():
            if not len(variant.pool):
                continue
            variants = self._of(variant)
            without, loses = np.isposinf(variants[0]) & ~variant.tried, _beaten(variants, self._front) & ~variant.tried
            free = ~(variant.tried | loses)
            infeasible, beaten = infeasible + int(without.sum()), beaten + int((loses & ~without).sum())
            unbeaten, total = unbeaten + int(free.sum()), total + len(free)
            if free.any():
                lowest = min(lowest, float(variants[0, free].min()))
        best = min(point[0] for point in self._front)
        known = unbeaten and len(self.aims.objectives) == 1 and np.isfinite(lowest) and best
        return Proof(infeasible, beaten, unbeaten, total, max(0.0, float((best - lowest) / abs(best))) if known else None)


def _beaten(bounds: FloatColumn, points: Sequence[FloatColumn]) -> NDArray[np.bool_]:
    # Equal is not better: what can at best draw level with a layout that is known cannot win.
    beaten = np.zeros(bounds.shape[1], bool)
    for point in points:
        beaten |= (point[:, None] <= bounds).all(axis=0)
    return beaten


Skips = Literal["nothing", "infeasible", "beaten"]


def skips(setting: bool | None, backends: Sequence[str], sampler: str, countable: bool) -> Skips:
    """What search.prune leaves out.

    By default what is beaten where a backend is simulated, and elsewhere what cannot meet the constraints: a sampler that proposes
    only what fits finds more (TPE comes within 2 % of GPT-3's best in 20 of 20 seeds, against 14). Brute force then leaves out
    nothing, so that it is the grid; nor is anything left out where a number is a dimension, whose layouts have no end.
    """
    if setting is not None:
        return "beaten" if setting else "nothing"
    if any(name != "analytical" for name in backends):
        return "beaten"
    return "infeasible" if countable and sampler != "brute_force" else "nothing"
