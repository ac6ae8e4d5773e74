"""How far to trust a row's time to the first token: further off than the time between tokens, and much alike for all loads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapid_dse.simulate.served_growth import SERVED_FIRST

FloatColumn = NDArray[np.float64]


def first_token_error(expected: FloatColumn, pooled: NDArray[np.bool_]) -> FloatColumn:
    """The error to expect of the time to the first token, ``(n_rows,)``; NaN where none is ``expected`` of that between tokens.

    It is one for all engines and one for all pools: how requests queue, which no load tells, sets it more than chip or model do.
    """
    error: FloatColumn = np.where(np.isnan(expected), np.nan, np.where(pooled, SERVED_FIRST["pools"], SERVED_FIRST["engines"]))
    return error
