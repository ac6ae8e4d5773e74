"""One layout against another, term by term: which terms of the step and of the memory make the difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rapid_dse.analysis.reasons.chosen import Figures, PricedTrial, settings
from rapid_dse.sweep.compose import value_at


@dataclass(frozen=True)
class Term:
    """A term of a sum in two trials, SI units; ``share``: of the whole difference, above 1 where others go the other way."""

    name: str
    first: float
    second: float
    share: float

    @property
    def difference(self) -> float:
        """What the first has more."""
        return self.first - self.second


@dataclass(frozen=True)
class Sum:
    """A sum in two trials and the terms that make its difference, the largest difference first."""

    name: str
    first: float
    second: float
    terms: tuple[Term, ...]

    @property
    def difference(self) -> float:
        """What the first has more."""
        return self.first - self.second


@dataclass(frozen=True)
class Difference:
    """What tells two trials apart: settings as ``key: (first, second)``, the step's time and the peak of memory by term."""

    settings: Mapping[str, tuple[Any, Any]]
    time: Sum
    memory: Sum


def terms_of(figures: Figures, start: str, end: str) -> dict[str, float]:
    """The terms of a sum by their short names: those of the columns ``<start>…<end>``."""
    return {name[len(start) : -len(end)]: value for name, value in figures.items() if name.startswith(start) and name.endswith(end)}


def times_of(figures: Figures) -> dict[str, float]:
    """The terms of the step, s."""
    return terms_of(figures, "time_", "_s")


def memory_of(figures: Figures) -> dict[str, float]:
    """The terms of the peak, bytes."""
    return terms_of(figures, "memory_", "_bytes")


def difference(first: PricedTrial, second: PricedTrial) -> Difference:
    """The first trial against the second."""
    time = _sum("step_time_s", first.figures, second.figures, (times_of(first.figures), times_of(second.figures)))
    memory = _sum("peak_memory_bytes", first.figures, second.figures, (memory_of(first.figures), memory_of(second.figures)))
    return Difference(differing(first, second), time, memory)


def _sum(name: str, first: Figures, second: Figures, terms: tuple[Mapping[str, float], Mapping[str, float]]) -> Sum:
    whole = first[name] - second[name]
    mine, others = terms
    summed = []
    for term in dict.fromkeys([*mine, *others]):
        one, other = mine.get(term, 0.0), others.get(term, 0.0)
        summed.append(Term(term, one, other, (one - other) / whole if whole else 0.0))
    return Sum(name, first[name], second[name], tuple(sorted(summed, key=lambda term: -abs(term.difference))))


def differing(first: PricedTrial, second: PricedTrial) -> dict[str, tuple[Any, Any]]:
    """The settings in which two trials differ: options of groups, keys of the layout, and other keys whose values are not the same."""
    pairs: dict[str, tuple[Any, Any]] = {}
    for group in dict.fromkeys([*first.choices, *second.choices]):
        if first.choices.get(group) != second.choices.get(group):
            pairs[group] = (first.choices.get(group), second.choices.get(group))
    mine, others = settings(first.layout), settings(second.layout)
    follows = () if first.scenario.model.num_experts else ("ep", "etp")  # of a dense model: from tp
    pairs |= {key: (mine[key], others[key]) for key in mine if mine[key] != others[key] and key.rsplit(".", 1)[1] not in follows}
    for section in ("workload", "hw", "cluster", "model", "software"):
        if section not in pairs:
            pairs |= _unequal(first, second, section, set(mine))
    return pairs


def _unequal(first: PricedTrial, second: PricedTrial, section: str, known: set[str]) -> dict[str, tuple[Any, Any]]:
    """Keys of a section whose values differ."""
    one, other = getattr(first.scenario, section), getattr(second.scenario, section)
    if one == other:
        return {}
    keys = [f"{section}.{name}" for name in type(one).model_fields if getattr(one, name) != getattr(other, name)]
    return {key: (value_at(first.scenario, key), value_at(second.scenario, key)) for key in keys if key not in known}
