"""How far to trust a row's energy: the error of its time, and that of its power where the power limit does not set it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.hardware import Hardware
from rapid_dse.cost.energy import most_watts

FloatColumn = NDArray[np.float64]

# Mean error of a GPU's power, by generation: 88 runs of serving on H100 (ML.ENERGY, docs/validation.md). No other had a meter.
POWER = {"hopper": 0.085}
AT_THE_LIMIT = 0.999  # of what a chip draws there


def energy_error(hw: Hardware, expected: FloatColumn, watts: FloatColumn) -> FloatColumn:
    """Error to expect of energy, ``(n_rows,)``, from that of time and the watts of a GPU; NaN where one of the two is not known.

    At its limit a chip draws the limit, so that energy is as far off as time is.
    """
    most = most_watts(hw, hw.energy.tdp if hw.power_limit is None else hw.power_limit)
    power = np.nan if hw.like is not None else POWER.get(hw.architecture or "", np.nan)
    error: FloatColumn = np.where(watts >= AT_THE_LIMIT * most, expected, np.hypot(expected, power))
    return error
