"""A chip's joules and watts from loads that were measured: idle power, a FLOP by precision, a byte that is streamed.

A table has the columns of ``energy.csv`` (``analysis/measured_energy.py``) and, where it is known, ``sm_clock_mean_mhz``, the clock of the
load in the mean.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from rapid_dse.config.hardware import Energy, Hardware
from rapid_dse.cost.energy import CLOCK_EXPONENT


def fit_joules(hw: Hardware, loads: pd.DataFrame) -> tuple[Energy, dict[str, float]]:
    """The chip's energies with what the loads tell of them, and the values that they told, by key below ``hw.energy``.

    A stream's joules are split over HBM and L2 as the chip's are. Products are brought to the highest clock that any load ran at.
    """
    energy, told = hw.energy, dict[str, float]()
    loads = loads[loads["energy_j"].gt(0) & ~loads.get("data", pd.Series(index=loads.index, dtype=object)).isin(["zeros", "ones"])]
    idle = loads[loads["op"].eq("idle")]
    if len(idle):
        told["idle"] = float((idle["energy_j"] / idle["time_s"]).median())
    watts = told.get("idle", energy.idle)
    dynamic = loads["energy_j"] - watts * loads["time_s"]
    stream = loads["op"].eq("read_sum")
    if stream.any():
        ratio = float((dynamic[stream] / loads.loc[stream, "bytes"]).median()) / (energy.hbm + energy.l2)
        told |= {"hbm": energy.hbm * ratio, "l2": energy.l2 * ratio}
    bytes_ = loads["bytes"].fillna(0.0) * (told.get("hbm", energy.hbm) + told.get("l2", energy.l2))
    clock = loads.get("sm_clock_mean_mhz", pd.Series(np.nan, index=loads.index))
    share = (clock / clock.max()).fillna(1.0).astype(float)
    per_flop = (dynamic - bytes_) / loads["flops"].where(loads["flops"].gt(0)) / share**CLOCK_EXPONENT
    products = loads["op"].eq("gemm") & per_flop.gt(0)
    flop = {str(precision): float(values.median()) for precision, values in per_flop[products].groupby(loads["precision"])}
    told |= {f"flop.{precision}": joules for precision, joules in flop.items() if precision in energy.flop}
    every = {**energy.flop, **{precision: joules for precision, joules in flop.items() if precision in energy.flop}}
    if "bf16" in flop and "fp16" in every and "fp16" not in flop:
        every["fp16"] = told["flop.fp16"] = flop["bf16"]
    plain = {key: value for key, value in told.items() if "." not in key}
    return energy.model_copy(update={**plain, "flop": every}), told
