"""How much later tokens come in an open loop whose engine takes longer for everything: what errors of its steps become there.

In a closed loop an engine that is one percent slower gives every token one percent later. In an open loop requests come as fast as
before, so that more of them are under way, more prompts fall between tokens, and near capacity a queue grows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.engines import Engines
from rapid_dse.simulate.inference.pricing import prepare, served

FloatColumn = NDArray[np.float64]

AROUND = 0.05  # share of the rate by which it is moved to either side


def amplification(scenario: Scenario, engines: Engines) -> FloatColumn:
    """By how many percent the time between tokens grows where all that an engine does takes one percent longer, ``(n_rows,)``.

    1 where no requests come at a rate. A slower engine at a rate is the same engine, on a slower clock, at a higher rate: 1 and the
    elasticity of the time between tokens to the rate. NaN where the system does not keep up with the higher rate.
    """
    grows = np.ones(len(engines))
    rows = np.flatnonzero(engines.request_rate > 0)
    if not len(rows):
        return grows
    table = engines.take(rows) if len(rows) < len(engines) else engines
    rates = np.concatenate([table.request_rate * (1 + way * AROUND) for way in (-1, 1)])
    both = replace(table.take(np.tile(np.arange(len(table)), 2)), request_rate=rates)
    low, high = served(scenario, both, prepare(scenario, both)).tpot_s.reshape(2, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        grows[rows] = 1 + np.log(high / low) / np.log((1 + AROUND) / (1 - AROUND))
    grows[~np.isfinite(grows)] = np.nan
    return grows
