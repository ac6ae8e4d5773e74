"""Portions of one model on one chip, whose requests differ in their lengths alone, are priced together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rapid_dse.parallel.engines import Engines
from rapid_dse.simulate.inference.lots import lots
from rapid_dse.simulate.results import Priced
from rapid_dse.sweep.portion import Portion


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
    except ValueError:  # the portion that raises it does so again, and has it as its rows' reason
        return [None] * len(lot)
    return priced
