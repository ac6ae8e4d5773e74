"""How much later tokens come in an open loop whose engine takes longer for everything: what errors of its steps become there.

In a closed loop an engine that is one percent slower gives every token one percent later. In an open loop requests come as fast as
before, so that more of them are under way, more prompts fall between tokens, and near capacity a queue grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.engines import Engines
from rapid_dse.simulate.inference.lots import lots
from rapid_dse.simulate.inference.pricing import price_together

FloatColumn = NDArray[np.float64]

AROUND = 0.05  # share of the rate by which it is moved to either side


def amplifications(tables: Sequence[tuple[Scenario, Engines]]) -> list[FloatColumn]:
    """By how many percent the time between tokens grows where all that an engine does takes one percent longer, a table, ``(n_rows,)``.

    1 where no requests come at a rate. A slower engine at a rate is the same engine, on a slower clock, at a higher rate: 1 and the
    elasticity of the time between tokens to the rate. NaN where the system does not keep up with the higher rate.
    """
    rows = [np.flatnonzero(engines.request_rate > 0) for _, engines in tables]
    at_rates = {at: (tables[at][0], _around(tables[at][1], own)) for at, own in enumerate(rows) if len(own)}
    grows = [np.ones(len(engines)) for _, engines in tables]
    places, around = list(at_rates), list(at_rates.values())
    for lot in lots(around):
        for one, priced in zip(lot, price_together([around[at] for at in lot]), strict=True):
            low, high = priced.tpot_s.reshape(2, -1)
            with np.errstate(invalid="ignore", divide="ignore"):
                grown = 1 + np.log(high / low) / np.log((1 + AROUND) / (1 - AROUND))
            grows[places[one]][rows[places[one]]] = np.where(np.isfinite(grown), grown, np.nan)
    return grows


def _around(engines: Engines, rows: NDArray[np.intp]) -> Engines:
    """The rows at a lower rate, and again at a higher one."""
    table = engines.take(rows)
    rates = np.concatenate([table.request_rate * (1 + way * AROUND) for way in (-1, 1)])
    return replace(table.take(np.tile(np.arange(len(table)), 2)), request_rate=rates)
