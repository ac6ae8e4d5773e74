"""Numbers as people write them: 2.310 s, 68.2 GiB, 1,234 tokens/s, 45.1 %, 1.2 MJ, $12.3."""

from __future__ import annotations

import json
import math
from typing import Any

from rapid_dse.config.scenario import unit_of

NOTHING = "–"  # stands where there is no number
_GIB = 1024.0**3
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))
_BINARY = ((1024.0**4, "TiB"), (_GIB, "GiB"), (1024.0**2, "MiB"), (1024.0, "KiB"))


def digits(value: float, count: int) -> str:
    """A number with ``count`` significant digits, more where it is longer: 975.5, 2.310, 1,234."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, count - 1 - math.floor(math.log10(abs(value))))
    places = max(0, count - 1 - math.floor(math.log10(abs(round(value, places)) or abs(value))))  # 9.9996 becomes 10.00
    return f"{value:,.{places}f}"


def seconds(value: float | None, count: int = 4) -> str:
    """A time: 15.44 s, 803.1 ms."""
    return NOTHING if value is None else scaled(value, "s", count) if value < 0.99995 else f"{digits(value, count)} s"


def size(value: float | None) -> str:
    """Bytes of a GPU's memory: 68.2 GiB."""
    return NOTHING if value is None else f"{value / _GIB:,.1f} GiB"


def percent(value: float | None) -> str:
    """A share: 45.1 %."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def dollars(value: float | None) -> str:
    """US dollars: $12.3, $0.843, $1,234."""
    return NOTHING if value is None else f"${digits(value, 3)}"


def rate(value: float | None) -> str:
    """Tokens a second: 1,234 tokens/s."""
    return NOTHING if value is None else f"{digits(value, 3) if value < 100 else f'{value:,.0f}'} tokens/s"


def scaled(value: float, unit: str, count: int = 4) -> str:
    """A number with a metric prefix before its unit: 3.350 TB/s, 1.200 MJ."""
    scale, prefix = next(((scale, prefix) for scale, prefix in _PREFIXES if abs(value) >= scale * (1 - 1e-9)), _PREFIXES[5])
    return f"{digits(value / scale, count)} {prefix}{unit}" if value else f"0 {unit}"


def days(value: float | None) -> str:
    """How long a run takes: 43.2 days, 7.31 h."""
    if value is None:
        return NOTHING
    return f"{digits(value / 86400, 3)} days" if value >= 86400 else f"{digits(value / 3600, 3)} h"


def amount(value: float) -> str:
    """How many tokens a run trains on: 15 T, 300 B, 5 M."""
    scale, name = next(((scale, name) for scale, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")) if value >= scale), (1.0, ""))
    return f"{value / scale:,.4g} {name}".strip()


def parameters(count: int) -> str:
    """How many parameters a model has: 70.6 B, 124 M."""
    scale, name = (1e12, "T") if count >= 1e12 else (1e9, "B") if count >= 1e9 else (1e6, "M")
    return f"{digits(count / scale, 3)} {name}"


def count(value: float | str) -> str:
    """How many: 16,384; a text, which a table of cases may hold, as it is."""
    return value if isinstance(value, str) else f"{value:,}"


def result(name: str, value: float | str | None) -> str:
    """A value of a result column, in the unit that its name tells; a text, which a table of cases may hold, as it is."""
    if isinstance(value, str):
        return value
    if value is None or value != value:  # NaN, in another program's file
        return NOTHING
    if name.endswith("_usd") or name.startswith("usd_"):
        return dollars(value)
    if name.startswith("tokens_per_s") or name.endswith("_per_s"):
        return rate(value)
    if name in ("mfu", "goodput"):
        return percent(value)
    if name == "train_time_s":
        return days(value)
    for suffix, words in (("_bytes", size), ("_s", seconds)):
        if name.endswith(suffix):
            return words(value)
    unit = {"energy_j": "J", "train_energy_j": "J", "energy_j_per_token": "J", "power_w_per_gpu": "W"}.get(name)
    return scaled(value, unit, 3) if unit else f"{value:,.6g}"


def setting(key: str, value: Any) -> str:
    """The value of an override key: with its unit where it is a quantity, as an override writes it where not.

    None, which a row has where the key is null or was not set, is its default.
    """
    if value is None:
        return "default"
    if isinstance(value, bool):
        return str(value).lower()
    by_number = isinstance(value, str) and value.startswith("[[")
    unit = unit_of(key) if isinstance(value, int | float) or by_number else None
    if unit is not None:
        return _quantities(value, unit) if by_number else _quantity(float(value), unit)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else f"{value:.6g}"
    return str(value)


def _quantities(pairs: str, unit: str) -> str:
    """Quantities by number, which a column holds as JSON: {8: 95 GB/s, 16: 50 GB/s}, as an override takes them."""
    try:
        return "{" + ", ".join(f"{number}: {_quantity(float(value), unit)}" for number, value in json.loads(pairs)) + "}"
    except (ValueError, TypeError):  # in another program's file
        return pairs


def _quantity(value: float, unit: str) -> str:
    if unit == "bytes":
        scale, name = next(((scale, name) for scale, name in _BINARY if value >= scale), (1.0, "B"))
        return f"{_short(value / scale)} {name}"
    if unit == "USD/h":
        return f"${_short(value)}/h"
    scale, prefix = next(((scale, prefix) for scale, prefix in _PREFIXES if abs(value) >= scale * (1 - 1e-9)), _PREFIXES[-1])
    return f"{_short(value / scale)} {prefix}{unit.replace('bytes', 'B').replace('byte', 'B')}" if value else f"0 {unit}"


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
