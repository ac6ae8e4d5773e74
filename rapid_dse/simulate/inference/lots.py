"""Small tables of engines that are priced as one: those of one model on one chip, whose requests differ in their lengths alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.engines import Engines
from rapid_dse.parallel.layouts import Layouts

MOST_TABLES = 24  # priced together
MOST_ROWS = 1024  # of a table, from which little is saved


def lots(tables: Iterable[tuple[Scenario, Layouts]]) -> list[list[int]]:
    """Places of the tables, each in one lot: ``pricing.price_together`` takes the tables of a lot of several."""
    by_key: dict[Hashable, list[list[int]]] = {}
    for at, (scenario, layouts) in enumerate(tables):
        own = by_key.setdefault(_key(scenario) if _can_wait(scenario, layouts) else at, [[]])
        if len(own[-1]) == MOST_TABLES:
            own.append([])
        own[-1].append(at)
    return [lot for several in by_key.values() for lot in several]


def _can_wait(scenario: Scenario, layouts: Layouts) -> bool:
    """Whether a table is priced in closed form, on chips at their own clock, leaves no files, and is small."""
    backend, model = scenario.backend, scenario.model
    closed = backend.name == "analytical" and not backend.artifacts.wanted and scenario.hw.power_limit is None
    return closed and isinstance(layouts, Engines) and model.of_kind.decodes and 0 < len(layouts) <= MOST_ROWS


def _key(scenario: Scenario) -> Hashable:
    """Equal for scenarios that differ, of what prices depend on, in the lengths of requests alone."""
    parts = (scenario.hw, scenario.cluster, scenario.model, scenario.software)
    lengths = ("prompt_len", "decode_len")
    return *map(id, parts), *(value for name, value in scenario.workload if name not in lengths)
