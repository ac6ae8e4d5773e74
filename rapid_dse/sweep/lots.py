"""Small tables of engines that are priced as one: those of one model on one chip, whose requests differ in their lengths alone."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Sequence

from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.engines import Engines
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.results import Priced
from rapid_dse.sweep.portion import Portion

MOST_TABLES = 24  # priced together
MOST_ROWS = 1024  # of a table, from which little is saved


def priced_in_lots(portions: Sequence[Portion]) -> Iterator[tuple[int, Priced | None, float]]:
    """Each portion's place, and results of its layouts with what they took, s a layout; None where they are to be priced by themselves."""
    for lot in lots([(portion.scenario, portion.layouts) for portion in portions]):
        start = time.perf_counter()
        priced = _priced([portions[at] for at in lot])
        seconds = (time.perf_counter() - start) / max(1, sum(len(portions[at].layouts) for at in lot))
        for at, results in zip(lot, priced, strict=True):
            yield at, results, seconds


def _priced(lot: Sequence[Portion]) -> Sequence[Priced | None]:
    """Results of the portions of a lot whose layouts are all legal."""
    tables = {
        at: (portion.scenario, portion.layouts)
        for at, portion in enumerate(lot)
        if isinstance(portion.layouts, Engines) and (portion.rule < 0).all()
    }
    priced: list[Priced | None] = [None] * len(lot)
    if len(tables) < 2:
        return priced
    from rapid_dse.simulate.inference.pricing import price_together  # with what prices requests

    try:
        for at, results in zip(tables, price_together(list(tables.values())), strict=True):
            priced[at] = results
    except Exception:  # whatever it is, the portion that raises it does so again, and has it as its rows' reason
        return [None] * len(lot)
    return priced


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
