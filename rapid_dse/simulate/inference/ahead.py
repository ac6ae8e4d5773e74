"""Passes of many small tables of engines, priced ahead of the tables: those of one model on one chip as one table."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.engines import Engines
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.inference.pricing import prepare, prepare_together

MOST_TABLES = 24  # priced together: what is found of a table of engines is kept of no more than 32
MOST_ROWS = 1024  # of a table, from which little is saved


def lots(tables: Iterable[tuple[Scenario, Layouts]]) -> list[list[int]]:
    """Places of the tables, each in one lot: tables of a lot can be prepared together."""
    by_key: dict[Hashable, list[list[int]]] = {}
    for at, (scenario, layouts) in enumerate(tables):
        own = by_key.setdefault(_key(scenario) if _can_wait(scenario, layouts) else at, [[]])
        if len(own[-1]) == MOST_TABLES:
            own.append([])
        own[-1].append(at)
    return [lot for several in by_key.values() for lot in several]


def prepare_ahead(tables: Sequence[tuple[Scenario, Layouts]]) -> None:
    """Prices the passes of a lot, which ``pricing.price`` then finds. Where that raises, it does so again there."""
    engines = [(scenario, layouts) for scenario, layouts in tables if isinstance(layouts, Engines)]
    if len(engines) < 2:
        return
    try:
        priced = prepare_together(engines)
    except Exception:  # whatever it is, each table finds out by itself
        return
    for (scenario, layouts), ready in zip(engines, priced, strict=True):
        layouts.alike.remembered.put((scenario, prepare), ready)


def _can_wait(scenario: Scenario, layouts: Layouts) -> bool:
    """Whether a table's passes are priced in closed form, on chips at their own clock, and it is small."""
    closed = scenario.backend.name == "analytical" and scenario.hw.power_limit is None
    return closed and scenario.workload.kind == "inference" and scenario.model.of_kind.decodes and 0 < len(layouts) <= MOST_ROWS


def _key(scenario: Scenario) -> Hashable:
    """Equal for scenarios that differ, of what passes depend on, in the lengths of requests alone."""
    parts = (scenario.hw, scenario.cluster, scenario.model, scenario.software)
    lengths = ("prompt_len", "decode_len")
    return *map(id, parts), *(value for name, value in scenario.workload if name not in lengths)
