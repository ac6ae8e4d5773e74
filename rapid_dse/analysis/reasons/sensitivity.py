"""Which layout would win on another machine: chip, memory, network and price, each halved and doubled, all rows priced again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.analysis.reasons.chosen import PricedTrial, closed_forms, figures_of
from rapid_dse.analysis.reasons.levers import turned
from rapid_dse.config.scenario import Scenario
from rapid_dse.events.backends import price
from rapid_dse.simulate.results import Priced
from rapid_dse.sweep.compose import value_at
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.ranking import descending, ranked_first
from rapid_dse.sweep.restored import portions_of

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROWS = 50_000  # priced again for each line of the table
FACTORS = (0.5, 2.0)


@dataclass(frozen=True)
class Shift:
    """What becomes of the ranking where one thing is another.

    Attributes:
        what: in words; ``keys``: of the scenario, each times ``factor``; ``hw``: the chip that it is changed on.
        by: the column that ranks.
        winner: the best row then.
        same: whether it is the winner of today.
        value: the winner's ``by`` then; ``stayed``: that of today's winner then, None where it does not fit then and the new one does.
    """

    what: str
    keys: tuple[str, ...]
    factor: float
    hw: str
    by: str
    winner: PricedTrial
    same: bool
    value: float
    stayed: float | None

    @property
    def gain(self) -> float | None:
        """How much better the new winner is than today's would be, a share of the latter's ``by``; None where that would not fit."""
        return None if self.stayed is None else abs(self.stayed - self.value) / abs(self.stayed) if self.stayed else 0.0


@dataclass(frozen=True)
class Sensitivity:
    """The table, and how many rows were priced for each of its lines, of how many."""

    shifts: tuple[Shift, ...]
    rows: int
    of: int


def _turns(scenario: Scenario) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What is changed, with its keys."""
    inner, dimensions = scenario.hw.node_dimensions, range(len(scenario.hw.network.dimensions))
    yield "arithmetic", ("hw.clock",)
    yield "HBM bandwidth", ("hw.memory.bandwidth",)
    yield "usable memory", ("hw.memory.usable",)
    for what, part in (("NVLink" if inner else "links", dimensions[:inner]), ("network between nodes", dimensions[inner:])):
        if len(part):
            yield (
                f"bandwidth of {what}" if inner else "bandwidth of the network",
                tuple(f"hw.network.dimensions.{at}.bandwidth" for at in part),
            )
    yield "latency of all links", tuple(f"hw.network.dimensions.{at}.latency" for at in dimensions)
    yield "price", ("hw.price",)


def sensitivity(table: pa.Table, by: str = "step_time_s") -> Sensitivity | None:
    """The table for a study; None where its rows cannot be composed here.

    Args:
        table: results; rows that were priced count, and of more than ``MOST_ROWS`` the best.
    """
    priced = table.filter(np.isin(table["status"].to_pylist(), ["ok", "oom"]))
    rows = ranked_first(priced, by, MOST_ROWS)
    portions = portions_of(rows)
    if portions is None or not len(rows):
        return None
    field = _Field([_closed(portion) for portion in portions])
    names = list(dict.fromkeys(portion.choices["hw"] for portion in field.portions))
    shifts = [shift for name in names for shift in field.shifts(name, by, len(names) > 1)]
    return Sensitivity(tuple(shifts), len(rows), len(priced))


def _closed(portion: Portion) -> Portion:
    return Portion(closed_forms(portion.scenario), portion.choices, portion.keys, portion.layouts, portion.rule, portion.reasons)


class _Field:
    """All rows that may win, by scenario."""

    def __init__(self, portions: Sequence[Portion]) -> None:
        self.portions = portions
        self._now: dict[str, tuple[int, int]] = {}
        self._priced = [price(portion.scenario, portion.layouts) for portion in portions]

    def shifts(self, hw: str, by: str, named: bool) -> Iterator[Shift]:
        """The lines of one chip; ``named``: whether there are others."""
        scenario = next(portion.scenario for portion in self.portions if portion.choices["hw"] == hw)
        for what, keys in _turns(scenario):
            column = "cost_usd" if what == "price" else by
            for factor in FACTORS:
                yield self._shift(f"{what} of {hw}" if named else what, keys, factor, hw, column)

    def _shift(self, what: str, keys: tuple[str, ...], factor: float, hw: str, by: str) -> Shift:
        scenarios = [
            _changed(portion.scenario, keys, factor) if portion.choices["hw"] == hw else portion.scenario for portion in self.portions
        ]
        priced = [
            price(scenario, portion.layouts) if portion.choices["hw"] == hw else before
            for scenario, portion, before in zip(scenarios, self.portions, self._priced, strict=True)
        ]
        portion, row = _best(priced, by)
        old = self._now.setdefault(by, _best(self._priced, by))
        layout = self.portions[portion].layouts.take(np.array([row]))
        choices: Mapping[str, str] = self.portions[portion].choices
        winner = PricedTrial(scenarios[portion], layout, figures_of(priced[portion], row), choices)
        name = by.removeprefix("-")
        value, stayed = (float(getattr(priced[at], name)[which]) for at, which in ((portion, row), old))
        lost = bool(winner.fits and not priced[old[0]].fits[old[1]])
        return Shift(what, keys, factor, hw, by, winner, (portion, row) == old, value, None if lost else stayed)


def _changed(scenario: Scenario, keys: Sequence[str], factor: float) -> Scenario:
    for key in keys:
        follows = ("hw.memory.capacity",) if key == "hw.memory.usable" else ()
        value: Any = value_at(scenario, key) * factor
        scenario = turned(scenario, key, value, follows)
    return scenario


def _best(priced: Sequence[Priced], by: str) -> tuple[int, int]:
    """The portion and the row that rank first: of what fits, or of all where nothing does."""
    name, sign = by.removeprefix("-"), -1.0 if descending(by) else 1.0
    values: list[NDArray[np.float64]] = [sign * getattr(trial, name) for trial in priced]
    fits = [trial.fits for trial in priced]
    if any(trial.any() for trial in fits):
        values = [np.where(fit, value, np.inf) for fit, value in zip(fits, values, strict=True)]
    rows = [int(np.argmin(value)) for value in values]
    portion = min(range(len(priced)), key=lambda at: values[at][rows[at]])
    return portion, rows[portion]
