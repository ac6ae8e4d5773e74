"""Quantities as people write them, to SI floats: the one place where strings become numbers."""

from __future__ import annotations

import math
from typing import Any

# Scale of each accepted unit to the SI base that the program computes in (bytes, seconds, FLOP, watts, joules, US dollars).
# Metric and binary prefixes (k, M, G, T, P; Ki, Mi, Gi, Ti; m, u, n, p) may stand before the unit's first letter.
UNITS: dict[str, dict[str, float]] = {
    "bytes": {"B": 1.0, "byte": 1.0, "bytes": 1.0, "bit": 0.125, "b": 0.125},
    "bytes/s": {"B/s": 1.0, "b/s": 0.125, "bit/s": 0.125, "bps": 0.125},
    "FLOP/s": {"FLOP/s": 1.0, "FLOPS": 1.0, "flop/s": 1.0},
    "s": {"s": 1.0, "h": 3600.0},
    "Hz": {"Hz": 1.0},
    "W": {"W": 1.0},
    "J/FLOP": {"J/FLOP": 1.0},
    "J/byte": {"J/B": 1.0, "J/byte": 1.0, "J/bit": 8.0, "J/b": 8.0},
    "USD/h": {"USD/h": 1.0, "$/h": 1.0},
}

EXAMPLES = {
    "bytes": "80 GiB",
    "bytes/s": "3.35 TB/s",
    "FLOP/s": "60 TFLOP/s",
    "s": "5 us",
    "Hz": "1.83 GHz",
    "W": "700 W",
    "J/FLOP": "0.6 pJ/FLOP",
    "J/byte": "4 pJ/bit",
    "USD/h": "2.5 USD/h",
}


def to_si(text: Any, unit: str) -> float:
    """The SI value of ``text``, a number or a string such as ``"3.35 TB/s"``.

    Args:
        text: a number (taken as SI already) or a string of a number and a unit of the kind ``unit``.
        unit: a key of ``UNITS``; it names the kind of quantity and its SI unit.

    Raises:
        ValueError: where ``text`` is no number, or its unit is not one of the kind.
    """
    if isinstance(text, bool) or not isinstance(text, int | float | str):
        raise ValueError(f"{text!r} is no quantity; allowed: a number in {unit}, or a number with a unit")
    if isinstance(text, int | float):
        return float(text)
    from quantiphy import Quantity  # imported here: plain numbers do not need it

    scales = UNITS[unit]
    try:
        quantity = Quantity(text, binary=True)
    except ValueError:
        raise ValueError(f"{text!r} is no quantity; allowed: a number and a unit, as {EXAMPLES[unit]!r}") from None
    if not quantity.units:
        return float(quantity)
    if quantity.units not in scales:
        raise ValueError(
            f"{text!r} is in no unit known here; allowed: {', '.join(scales)}, with a prefix (k, M, G, T, Ki, Mi, Gi, m, u, n, p)"
        )
    value = float(quantity) * scales[quantity.units]
    if math.isnan(value):
        raise ValueError(f"{text!r} is not a number; allowed: as {EXAMPLES[unit]!r}")
    return value
