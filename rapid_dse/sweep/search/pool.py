"""The feasible layouts of a scenario as points, and the point nearest to what a sampler proposes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.parallel.layouts import CODES, COLUMN_OF, IntColumn, Layouts
from rapid_dse.sweep.search.dimensions import Choice

_ORDERED = frozenset(
    {"num_gpus", "global_batch_size", "tp", "cp", "dp", "pp", "ep", "etp", "vpp", "zero", "micro_batch_size", "shard_group"}
)


@dataclass(frozen=True)
class LayoutPool:
    """Legal layouts of one model at one sequence length.

    Attributes:
        layouts: the legal ones, ``(n_layouts,)``.
        rejected: why others are not among them, counted by rule.
        broken: where no layout is legal, one that is not, and the rule that it breaks.
    """

    layouts: Layouts
    rejected: Mapping[str, int]
    broken: tuple[Layouts, str] | None = None

    def __len__(self) -> int:
        return len(self.layouts)


def layout_choices(pools: Sequence[LayoutPool], searched: Sequence[str]) -> list[Choice]:
    """A dimension for each searched column (short names) that has several values among the pools' layouts."""
    choices = []
    for name in searched:
        codes = np.unique(np.concatenate([getattr(pool.layouts, name) for pool in pools]))
        if len(codes) > 1:
            choices.append(Choice(_KEY[name], tuple(_plain(name, code) for code in codes), name in _ORDERED))
    return choices


_KEY = {name: key for key, name in COLUMN_OF.items()}


def _plain(name: str, code: Any) -> Any:
    if name in CODES:
        return CODES[name][int(code)]
    return bool(code) if name == "sequence_parallel" else int(code)


@dataclass(frozen=True)
class Points:
    """A pool's layouts as indices into the choices of each dimension: ``index`` ``(n_layouts, n_dimensions)``."""

    choices: tuple[Choice, ...]
    index: NDArray[np.float32]

    @classmethod
    def of(cls, pool: LayoutPool, choices: Sequence[Choice]) -> Points:
        """The points of a pool; every layout's value must be among a dimension's."""
        columns = []
        for choice in choices:
            name = COLUMN_OF[choice.key]
            codes = np.array([_code(name, value) for value in choice.values])
            order = np.argsort(codes)
            columns.append(order[np.searchsorted(codes[order], getattr(pool.layouts, name).astype(np.int64))])
        index = np.stack(columns, axis=1) if columns else np.zeros((len(pool), 0))
        return cls(tuple(choices), index.astype(np.float32))

    def labels(self, row: int) -> dict[str, Any]:
        """The dimensions' labels of one layout."""
        return {choice.key: choice.labels[int(at)] for choice, at in zip(self.choices, self.index[row], strict=True)}

    def row(self, labels: Mapping[str, Any]) -> int | None:
        """The row with just these labels; None where there is none."""
        wanted = np.array([choice.index(labels[choice.key]) for choice in self.choices], np.float32)
        matching_rows = np.flatnonzero((self.index == wanted).all(axis=1))
        return int(matching_rows[0]) if len(matching_rows) else None

    def nearest(self, labels: Mapping[str, Any], barred: NDArray[np.bool_]) -> int | None:
        """The row that is nearest to a proposal among those that are not barred, the first of equals; None where all are.

        A different word is one apart; ordered values by their place in the list, so that the ends are one apart.
        """
        if barred.all():
            return None
        distance = np.where(barred, np.float32(np.inf), np.float32(0.0))
        for at, choice in enumerate(self.choices):
            wanted = choice.index(labels[choice.key])
            apart = np.abs(self.index[:, at] - wanted)
            distance += apart / (len(choice.values) - 1) if choice.ordered else apart > 0
        return int(distance.argmin())


def _code(name: str, value: Any) -> int:
    return CODES[name].index(value) if name in CODES else int(value)


def pool_of(layouts: Layouts, rule: IntColumn, reasons: Sequence[str], rejected: Mapping[str, int]) -> LayoutPool:
    """The legal ones among enumerated layouts."""
    counts = dict(rejected)
    for at, reason in enumerate(reasons):
        if broken := int((rule == at).sum()):
            counts[reason] = counts.get(reason, 0) + broken
    legal = layouts.take(rule < 0)
    illegal = np.flatnonzero(rule >= 0)
    example = None
    if not len(legal) and len(illegal):
        example = layouts.take(illegal[:1]), reasons[int(rule[illegal[0]])]
    return LayoutPool(legal, counts, example)


def within(pool: LayoutPool, choices: Sequence[Choice]) -> LayoutPool:
    """The pool without the layouts that have a value which is none of the choices."""
    kept = np.ones(len(pool), bool)
    for choice in choices:
        name = COLUMN_OF[choice.key]
        kept &= np.isin(getattr(pool.layouts, name).astype(np.int64), [_code(name, value) for value in choice.values])
    return pool if kept.all() else replace(pool, layouts=pool.layouts.take(kept))
