"""The space of a study: which scenario and which legal layout stand behind a proposal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario, canonical
from rapid_dse.parallel.layouts import COLUMN_OF, IntColumn
from rapid_dse.sweep import identity
from rapid_dse.sweep.compose import Composed
from rapid_dse.sweep.overrides import GROUPS, Interval
from rapid_dse.sweep.pairs import flat, keys_in, together
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.search.dimensions import Choice, Dimension, Number
from rapid_dse.sweep.search.pool import LayoutPool, Points, layout_choices, pool_of, within
from rapid_dse.sweep.space import Axes, Setting, base_codes, combinations, first_of, layouts_of

_POOLS_KEPT = 16  # pools of models or sequence lengths that a number makes: each is megabytes


@dataclass
class Variant:
    """A scenario with its legal layouts.

    Attributes:
        name: the labels of what is not layout, in the order of the dimensions.
        tried: layouts that the study holds or waits for, ``(n_layouts,)``.
        hopeless: layouts that cannot win, ``(n_layouts,)``.
    """

    name: tuple[Any, ...]
    setting: Setting
    pool: LayoutPool
    points: Points
    tried: NDArray[np.bool_]
    hopeless: NDArray[np.bool_]

    @property
    def barred(self) -> NDArray[np.bool_]:
        """Layouts that are not to be proposed, ``(n_layouts,)``."""
        return self.tried | self.hopeless

    def portion(self, rows: Sequence[int] | IntColumn) -> Portion:
        """The layouts at ``rows``; where the pool is empty, its example of what is illegal."""
        setting = self.setting
        if not len(self.pool):
            layouts, reason = self.pool.broken or (self.pool.layouts, "no layout is legal")
            return Portion(setting.scenario, setting.choices, setting.keys, layouts, np.zeros(len(layouts), np.int64), (reason,))
        layouts = self.pool.layouts.take(np.asarray(rows, np.int64))
        return Portion(setting.scenario, setting.choices, setting.keys, layouts, np.full(len(layouts), -1, np.int64), ())


class SearchSpace:
    """All dimensions of a study; makes the variants, keeps those that a list of values spans."""

    def __init__(self, axes: Axes) -> None:
        """Within ``hydra_ready()``: every combination of options is composed here, so that a wrong one is found at the start.

        Raises:
            ValueError: an option, a key, a value or an end of an interval is wrong, or no layout at all is legal.
        """
        self._axes = axes
        self._options = {**axes.groups, **together(axes.pairs)}  # what decides which options are composed
        self._composed: dict[frozenset[tuple[str, str]], Composed] = {}
        for combination in combinations(self._options):
            self._composition(combination)
        self.layout: tuple[Choice, ...] = ()
        self._pools: dict[tuple[Any, ...], LayoutPool] = {}
        self._variants: dict[tuple[Any, ...], Variant] = {}
        lists = [Choice(key, values, _ordered(values)) for key, values in {**self._options, **axes.variants}.items()]
        self._lists = tuple(choice for choice in lists if len(choice.values) > 1)
        self.numbers = tuple(self._number(key, interval) for key, interval in axes.intervals.items())
        pools = self._listed_pools()
        self.layout = tuple(layout_choices(pools, [name for name in COLUMN_OF.values() if name in axes.codes]))
        self.rejected: Mapping[str, int] = sum((Counter(pool.rejected) for pool in pools), Counter())
        self._points: dict[int, tuple[LayoutPool, Points]] = {}
        if not any(len(pool) for pool in pools):
            reasons = ", ".join(self.rejected) or next((pool.broken[1] for pool in pools if pool.broken), "")
            raise ValueError(f"search: no layout of the space is legal ({reasons}); allowed: a space with at least one legal layout")

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Options and listed values, numbers, then the layout."""
        return (*self._outer, *self.layout)

    @property
    def _outer(self) -> tuple[Dimension, ...]:
        return (*self._lists, *self.numbers)

    @property
    def outer_keys(self) -> tuple[str, ...]:
        """Keys and groups that are searched and are no part of a layout."""
        own = [key for dimension in self._outer for key in keys_in(dimension.key)]
        own += [choice.key for choice in self.layout]
        return tuple(key for key in own if not key.startswith("parallel."))

    @property
    def countable(self) -> bool:
        """Whether the space has an end: no number is a dimension."""
        return not self.numbers

    def digest(self) -> str:
        """8 hex digits of what the study prices beside its dimensions."""
        first = self._setting({**self._first(), **{number.key: number.low for number in self.numbers}})
        return identity.digest_of_scenarios([first.scenario])

    def settings(self) -> list[Setting]:
        """The setting of each combination of options, other keys at their first value."""
        numbers = {number.key: number.low for number in self.numbers}
        variants = {**first_of(self._axes.variants), **numbers}
        return [self._setting({**variants, **combination}) for combination in combinations(self._options)]

    def variant(self, labels: Mapping[str, Any]) -> Variant:
        """The variant behind a trial's parameters; the same object each time where no number is a dimension.

        Raises:
            ValueError: where a number is beyond the key's bounds.
        """
        name = tuple(labels[dimension.key] for dimension in self._outer)
        if name in self._variants:
            return self._variants[name]
        values = {dimension.key: dimension.value(labels[dimension.key]) for dimension in self._outer}
        setting = self._setting({**self._first(), **values})
        pool = self._pool(setting)
        made = Variant(name, setting, pool, self._points_of(pool), np.zeros(len(pool), bool), np.zeros(len(pool), bool))
        if self.countable:
            self._variants[name] = made
        return made

    def variants(self) -> Iterator[Variant]:
        """Every variant of a countable space, in order."""
        for values in combinations({choice.key: choice.labels for choice in self._lists}):
            yield self.variant(values)

    def labels(self, variant: Variant, row: int) -> dict[str, Any]:
        """All parameters of one layout of a variant."""
        names = dict(zip((dimension.key for dimension in self._outer), variant.name, strict=True))
        return {**names, **variant.points.labels(row)}

    def draw(self, rng: np.random.Generator, bar: Callable[[Variant], None]) -> dict[str, Any]:
        """The parameters of a variant, each as likely, and of one of its layouts that ``bar`` leaves, each as likely."""
        outer = {dimension.key: dimension.draw(rng) for dimension in self._outer}
        variant = self.variant(outer)
        bar(variant)
        free = np.flatnonzero(~variant.barred)
        if not len(free):
            return {**outer, **{choice.key: choice.draw(rng) for choice in self.layout}}
        return self.labels(variant, int(rng.choice(free)))

    def base(self) -> dict[str, Any]:
        """Labels of the variant at the first listed values and at the configuration's own numbers, where they are in reach."""
        settings: dict[str, Any] = {choice.key: choice.labels[0] for choice in self._lists}
        at = self._setting(self._first()).keys
        for number in self.numbers:
            own = at[number.key] if at[number.key] is not None else number.low
            settings[number.key] = min(max(own, number.low), number.high)
        return settings

    def _first(self) -> dict[str, Any]:
        return first_of({**self._options, **self._axes.variants})

    def _composition(self, values: Mapping[str, Any]) -> Composed:
        """What the options among some values compose to."""
        options = {key: value for key, value in flat(values).items() if key in GROUPS}
        mark = frozenset(options.items())
        if mark not in self._composed:
            self._composed[mark] = self._axes.composed(options)
        return self._composed[mark]

    def _setting(self, values: Mapping[str, Any]) -> Setting:
        keys = {key: value for key, value in flat(values).items() if key not in GROUPS}
        return self._axes.setting(self._composition(values), keys)

    def _number(self, key: str, interval: Interval) -> Number:
        """The dimension of an interval; both ends are validated, and whether the key takes whole numbers alone is tried."""
        low, high = interval.low, interval.high
        whole = False
        try:
            self._setting({**self._first(), key: low + (high - low) * (math.sqrt(2) - 1)})
        except ValueError:
            low, high, whole = math.ceil(low), math.floor(high), True
        for end in (low, high):
            self._setting({**self._first(), key: end})
        if whole and low >= high:
            raise ValueError(f"{key}=interval({interval.low:g},{interval.high:g}): allowed: ends with several whole numbers between")
        return Number(key, low, high, interval.log, whole)

    def _listed_pools(self) -> list[LayoutPool]:
        """The pools that the listed values span; numbers at both ends."""
        ends = [{number.key: number.low for number in self.numbers}, {number.key: number.high for number in self.numbers}]
        # What is the hardware's alone changes no layout: one value stands for all.
        relevant = {key: values if not key.startswith("hw.") else values[:1] for key, values in self._axes.variants.items()}
        pools: dict[int, LayoutPool] = {}
        for values in combinations({**self._options, **relevant}):
            for end in ends:
                pool = self._pool(self._setting({**values, **end}))
                pools[id(pool)] = pool
        return list(pools.values())

    def _pool(self, setting: Setting) -> LayoutPool:
        scenario, codes = setting.scenario, self._axes.codes
        base = tuple((name, code) for name, code in base_codes(scenario).items() if name not in codes)
        mark = (canonical(scenario.model), canonical(scenario.workload), *_rules_of(scenario), base, setting.broken)
        if mark not in self._pools:
            if self.numbers and len(self._pools) >= _POOLS_KEPT:
                self._pools.pop(next(iter(self._pools)))
            # Between the ends of a number (of layers, say) there may be degrees that neither end has: they are not searched.
            self._pools[mark] = within(pool_of(*layouts_of(setting, codes)), self.layout)
        return self._pools[mark]

    def _points_of(self, pool: LayoutPool) -> Points:
        if id(pool) not in self._points or self._points[id(pool)][0] is not pool:
            if len(self._points) >= _POOLS_KEPT:
                self._points.clear()
            self._points[id(pool)] = pool, Points.of(pool, self.layout)
        return self._points[id(pool)][1]


def _rules_of(scenario: Scenario) -> tuple[Any, ...]:
    """What decides beside model, workload and degrees which layouts are legal."""
    software = scenario.software
    return software.name, canonical(software.offers), software.enforce, software.pipeline.pipeline_split, scenario.parallel.stage_layers


def _ordered(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


@dataclass(frozen=True)
class Trial:
    """A proposal, settled: the layout ``row`` of a variant; ``row`` −1 where the variant has no legal layout.

    ``beaten`` is the bound (a loss; inf: it cannot meet the constraints) that shows that it cannot win, where one does.
    """

    number: int
    variant: Variant
    row: int
    labels: Mapping[str, Any]
    beaten: float | None = None

    def portion(self) -> Portion:
        """This trial alone."""
        return self.variant.portion([self.row] if self.row >= 0 else [])

    def key(self) -> str:
        """32 hex digits: what the store knows the trial by."""
        portion = self.portion()
        return identity.hex_bytes(identity.keys(portion.scenario, portion.layouts)).tobytes().decode()
