"""The rows that are asked about: found by their keys in a table of results, with the scenario and the layout behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from rapid_dse.config.scenario import Scenario
from rapid_dse.events.backends import price
from rapid_dse.parallel.layouts import CODES, Layouts
from rapid_dse.simulate.results import Priced
from rapid_dse.sweep import identity, ranking
from rapid_dse.sweep.restored import portion_of
from rapid_dse.sweep.search.aims import constraint

if TYPE_CHECKING:
    import pyarrow as pa

Figures = Mapping[str, float]  # result columns of one row, SI units


@dataclass(frozen=True)
class PricedTrial:
    """A layout under a scenario, with what it is priced at.

    Attributes:
        layout: one, ``(1,)``.
        figures: its result columns.
        choices: the option behind each group, where they are known.
        key: as results show it.
        keys: what else it was set to beside its options and its layout: override key → value.
        stored: whether ``figures`` are those of the row, which a simulation or older code priced, and not today's closed forms.
    """

    scenario: Scenario
    layout: Layouts
    figures: Figures
    choices: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    stored: bool = False
    keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether its peak is within hw.memory.usable."""
        return bool(self.figures["fits"])


def closed_forms(scenario: Scenario) -> Scenario:
    """The scenario as the closed forms price it, with nothing kept of the run."""
    backend = scenario.backend
    artifacts = backend.artifacts.model_copy(update=dict.fromkeys(type(backend.artifacts).model_fields, False))
    return scenario.model_copy(update={"backend": backend.model_copy(update={"name": "analytical", "artifacts": artifacts})})


def figures_of(priced: Priced, row: int = 0) -> dict[str, float]:
    """The result columns of one row, those that it lacks left out."""
    figures = {f.name: float(getattr(priced, f.name)[row]) for f in fields(priced)}
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def trial(scenario: Scenario, layout: Layouts, choices: Mapping[str, str] | None = None) -> PricedTrial:
    """A layout under a scenario, priced by closed forms."""
    closed = closed_forms(scenario)
    return PricedTrial(closed, layout, figures_of(price(closed, layout)), choices or {}, identity.texts(scenario, layout)[0])


def restored(row: Mapping[str, Any]) -> PricedTrial:
    """The trial behind a row of results. Closed forms price it again; what a simulation found stays as it is.

    Raises:
        ValueError: where the row was not priced, or what it was composed of is not here.
    """
    key = row["key"]
    if row["status"] not in ("ok", "oom"):
        raise ValueError(f"--key={key}: this row has status={row['status']} ({row['reason']}); allowed: a row that was priced")
    portion_of_row = portion_of(row)
    if portion_of_row is None:
        raise ValueError(f"--key={key}: cannot be composed here; allowed: a row whose hw, model, software and cluster are in conf/")
    choices = {group: str(row[group]) for group in ("hw", "cluster", "model", "software", "backend") if row.get(group)}
    keys = {key: list(value) if isinstance(value, tuple) else value for key, value in portion_of_row.keys.items() if value is not None}
    if portion_of_row.scenario.backend.name == "analytical":
        return replace(trial(portion_of_row.scenario, portion_of_row.layouts, choices), keys=keys)
    names = [f.name for f in fields(Priced)]
    figures = {name: float(row[name]) for name in names if row.get(name) is not None}
    return PricedTrial(closed_forms(portion_of_row.scenario), portion_of_row.layouts, figures, choices, key, stored=True, keys=keys)


def row_of(table: pa.Table, key: str) -> dict[str, Any]:
    """The row whose key starts with ``key``.

    Raises:
        ValueError: where no row has it, or several have.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    keys = table["key"].cast(pa.string())
    rows = table.filter(pc.fill_null(pc.starts_with(keys, key), False))
    if not len(rows):
        some = ", ".join(str(key)[:12] for key in keys.drop_null()[:3].to_pylist())
        raise ValueError(f"--key={key}: no row has it; allowed: the start of a key of the results, as {some}")
    if len(rows) > 1:
        raise ValueError(f"--key={key}: {len(rows)} rows start so; allowed: more of its digits")
    row: dict[str, Any] = rows.to_pylist()[0]
    return row


def kept(table: pa.Table, constraints: Sequence[str]) -> pa.Table:
    """The rows that keep constraints, as ``tpot_s<=0.03``; all where there are none.

    Raises:
        ValueError: where one is no constraint on a column, or no row keeps them all.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    columns, asked = ranking.numbers(table.schema), len(table)
    for text in constraints:
        limit = constraint(text, columns, "--constraint")
        values = pc.fill_null(table[limit.name].cast(pa.float64()), math.nan).to_numpy()
        table = table.filter(pa.array(~limit.broken(values)))
    if asked and not len(table):
        raise ValueError(f"--constraint={' '.join(constraints)}: no row keeps it; allowed: what some of {asked} rows keep")
    return table


def best_rows(table: pa.Table, by: str, top: int) -> list[dict[str, Any]]:
    """The first rows of the ranking, best first.

    Raises:
        ValueError: where no row was priced, or no column has the name ``by``.
    """
    rows: list[dict[str, Any]] = ranking.best(table, by, top).to_pylist()
    if not rows:
        raise ValueError("no row of the results was priced; allowed: results with rows that are ok or oom")
    return rows


STRUCTURE = ("hw", "model", "software", *(f"parallel.{name}" for name in ("tp", "cp", "pp", "ep", "zero")))
_LOOKED_AT = 2000
_NEVER_NULL = ("tp", "cp", "pp", "ep")


def rival_of(table: pa.Table, row: Mapping[str, Any], by: str) -> dict[str, Any] | None:
    """What a row is held against where nobody says: the best row, or for the best itself the next of another structure.

    Of another structure is what differs in a degree beside dp, in ZeRO, or in an option of a group; where there is none among the first
    2,000 the next row.
    """
    others = [other for other in best_rows(table, by, _LOOKED_AT) if other["key"] != row["key"]]
    if not others:
        return None
    if best_rows(table, by, 1)[0]["key"] != row["key"]:
        return best_rows(table, by, 1)[0]
    return next((other for other in others if any(other.get(key) != row.get(key) for key in STRUCTURE)), others[0])


def settings(layout: Layouts) -> dict[str, Any]:
    """The keys of a layout and their values as overrides write them; null where a column is what follows from the others."""
    values: dict[str, Any] = {}
    for name, key in layout.keys.items():
        value = getattr(layout, name)[0].item()
        null = layout.optional.get(name) == value and name not in _NEVER_NULL
        values[key] = CODES[name][int(value)] if name in CODES else None if null else value
    return values
