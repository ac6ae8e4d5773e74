"""Quantities as people write them, to SI floats: the one place where strings become numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

# Scale of each accepted unit to the SI base that the program computes in (bytes, seconds, FLOP, watts, joules, US dollars).
# Metric and binary prefixes (k, M, G, T, P; Ki, Mi, Gi, Ti; m, u, n, p) may stand before the unit's first letter.
UNITS: dict[str, dict[str, float]] = {
    "bytes": {"B": 1.0, "byte": 1.0, "bytes": 1.0, "bit": 0.125, "b": 0.125},
    "bytes/s": {"B/s": 1.0, "b/s": 0.125, "bit/s": 0.125, "bps": 0.125},
    "FLOP/s": {"FLOP/s": 1.0, "FLOPS": 1.0, "flop/s": 1.0},
    "s": {"s": 1.0, "h": 3600.0, "d": 86400.0, "days": 86400.0},
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


# Numbers with a unit that are read without quantiphy, which takes longer to import than most files take to read.
_PLAIN = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z$/]*)", re.ASCII)
_POWERS = {"k": "e3", "M": "e6", "G": "e9", "T": "e12", "P": "e15", "m": "e-3", "u": "e-6", "n": "e-9", "p": "e-12"}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def to_si(text: Any, unit: str) -> float:
    """The SI value of ``text``, a number or a string such as ``"3.35 TB/s"``.

    Args:
        text: a number (taken as SI already) or a string of a number and a unit of the kind ``unit``.
        unit: a key of ``UNITS``; it names the kind of quantity and its SI unit.

    Raises:
        ValueError: where ``text`` is not a finite number, or its unit is not one of the kind.
    """
    if isinstance(text, bool) or not isinstance(text, int | float | str):
        raise ValueError(_not_a_quantity(text, unit))
    value = _scaled(text, unit) if isinstance(text, str) else _float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shortened(text)} is not a finite number; expected one such as {EXAMPLES[unit]}")
    return value


def share(value: Any) -> Any:
    """The share of a whole that a text such as ``"5 %"`` stands for; what is no text is a share already.

    Raises:
        ValueError: where the text is no number, or one in another unit.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ValueError(f"{shortened(value)} is no share; expected one such as 5 % or 0.05") from None


def _scaled(text: str, unit: str) -> float:
    """The SI value of a number with a unit, or of one without, which is SI already."""
    if (plain := _plain(text, UNITS[unit])) is not None:
        return plain
    from quantiphy import Quantity

    if "," in text:  # to some a decimal point, to others nothing at all: 3,35 would be 335
        raise ValueError(f"{shortened(text)} has a comma; expected a decimal point and no separators, such as {EXAMPLES[unit]}")
    scales = UNITS[unit]
    try:
        quantity = Quantity(text, binary=True)
    except (ValueError, OverflowError):
        raise ValueError(_not_a_quantity(text, unit)) from None
    if quantity.units and quantity.units not in scales:
        raise ValueError(
            f"{shortened(text)} has a unit that is not known here; expected one of {', '.join(scales)}, "
            "with a prefix (k, M, G, T, Ki, Mi, Gi, m, u, n, p)"
        )
    return _float(quantity) * scales.get(quantity.units, 1.0)


def _plain(text: str, scales: Mapping[str, float]) -> float | None:
    """The SI value of a number with one of the units, a prefix before it or none; None where the text is anything else."""
    match = _PLAIN.fullmatch(text)
    if match is None:
        return None
    number, named = match.groups()
    if not named or named in scales:
        return float(number) * scales.get(named, 1.0)
    if named[0] in _POWERS and named[1:] in scales:
        return float(number + _POWERS[named[0]]) * scales[named[1:]]
    if named[:2] in _BINARY and named[2:] in scales:
        return float(number) * _BINARY[named[:2]] * scales[named[2:]]
    return None


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf


def _not_a_quantity(value: Any, unit: str) -> str:
    return f"{shortened(value)} is not a valid quantity; expected a number with a unit, such as {EXAMPLES[unit]}"


def shortened(value: Any) -> str:
    """A value as a message shows it: as people write it, and cut where it is longer than a line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"an integer of more than {int(abs(value).bit_length() * 0.30103)} digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
