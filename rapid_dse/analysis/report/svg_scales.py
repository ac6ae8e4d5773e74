"""Axes of pictures: where a value lies, and which values are written beside the axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
LOGARITHMIC = 8.0  # an axis whose ends are further apart than this factor is logarithmic
_MOST_TICKS = 8


@dataclass(frozen=True)
class Scale:
    """An axis between two values above 0, drawn from ``start`` to ``end`` (pixels)."""

    low: float
    high: float
    start: float
    end: float

    @property
    def logarithmic(self) -> bool:
        """Whether equal factors, and not equal differences, are equally far apart."""
        return self.high / self.low > LOGARITHMIC

    def place(self, values: Values) -> Values:
        """Pixels of values, ``(n_values,)``."""
        low, high = (math.log(self.low), math.log(self.high)) if self.logarithmic else (self.low, self.high)
        at = np.log(values) if self.logarithmic else values
        placed: Values = self.start + (at - low) / (high - low) * (self.end - self.start)
        return placed

    def ticks(self, unit: float = 1.0) -> list[float]:
        """Values between the ends that are round in a unit: 1, 2 and 5 times powers of ten, or multiples of one of these."""
        low, high = self.low / unit, self.high / unit
        if self.logarithmic:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            round_ones = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
            round_values = [value for value in round_ones if low <= value <= high]
            return [value * unit for value in round_values[:: math.ceil(len(round_values) / _MOST_TICKS) or 1]]
        raw = (high - low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= raw * (1 - 1e-9))
        first = math.ceil(low / step - 1e-9)
        return [step * at * unit for at in range(first, math.floor(high / step + 1e-9) + 1) if at > 0]


def scale_of(values: Values, start: float, end: float) -> Scale:
    """An axis on which all of these values, finite and above 0, lie with some room at both ends."""
    low, high = float(values.min()), float(values.max())
    room = (high / low) ** 0.04 if high / low > LOGARITHMIC else 1 + 0.04 * max(1 - low / high, 0.05)
    return Scale(low / room, high * room, start, end)
