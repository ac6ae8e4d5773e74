"""Field types that every part of the schema shares: what a number counts or measures, its unit, and the bounds that it must keep.

The bounds are far outside of what is built or trained. They are there so that no product of a few figures overflows and no quotient
vanishes: whatever the schema lets through has a finite price.

Modules that hold models do not postpone their annotations (``from __future__ import annotations``): pydantic would compile each again from
its text, which takes a tenth of the time that the schema takes to import.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from rapid_dse.config.units import share, shortened, to_si


class Frozen(BaseModel):
    """A part of the configuration: immutable, no key but the declared ones, and true and false only where a key asks for them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, data: Any) -> Any:
        # To Python, and so to pydantic, true is 1. One look at all keys: a validator of each field would be hundreds to set up and to call.
        truths = {name: _truth_in(value) for name, value in data.items()} if isinstance(data, Mapping) else {}
        wrong = [name for name, truth in truths.items() if truth is not None and name in _numbers_and_names(cls)]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, [_no_truth(name, bool(truths[name]), data[name]) for name in wrong])
        return data


@cache
def _numbers_and_names(model: type[BaseModel]) -> frozenset[str]:
    """The fields of a model that take no true or false."""
    return frozenset(name for name, info in model.model_fields.items() if not _takes_truth(info.annotation))


def _no_truth(name: str, truth: bool, value: Any) -> InitErrorDetails:
    error = ValueError(f"{str(truth).lower()} is neither a number nor a name; expected one of these")
    return InitErrorDetails(type="value_error", loc=(name,), input=value, ctx={"error": error})


def _truth_in(value: Any) -> bool | None:
    """The first true or false in a value or in a list of values."""
    if isinstance(value, list | tuple):
        return next((truth for item in value if (truth := _truth_in(item)) is not None), None)
    return value if isinstance(value, bool) else None


def _takes_truth(annotation: Any) -> bool:
    return annotation is bool or annotation is Any or any(_takes_truth(part) for part in get_args(annotation))


def _whole(value: Any) -> Any:
    # A case table holds 8.0 where somebody's spreadsheet did; True and '8' are mistakes.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool | str):
        raise ValueError(f"{shortened(value)} is not a whole number; expected one, such as 8")
    return value


@dataclass(frozen=True)
class Unit:
    """Metadata of a field that holds a quantity: the SI unit that its values are in, a key of ``units.UNITS``."""

    name: str


def _quantity(unit: str) -> BeforeValidator:
    return BeforeValidator(lambda value: to_si(value, unit))


def _or_zero(least: float) -> AfterValidator:
    """Lets 0 pass, and of other numbers those that do not vanish beside it."""

    def check(value: float) -> float:
        if 0 < value < least:
            raise ValueError(f"{value:g} is too small; expected 0, or at least {least:g}")
        return value

    return AfterValidator(check)


WHOLE = BeforeValidator(_whole)

_THOUSANDS = {"k": 1024, "K": 1024, "M": 1024**2}
_TOKENS = re.compile(r"(\d+(?:\.\d+)?)\s*([kKM])")


def _tokens(value: Any) -> Any:
    """A length as people write it: 8k is 8,192 tokens, as 1M is 1,048,576."""
    match = _TOKENS.fullmatch(value.strip()) if isinstance(value, str) else None
    return value if match is None else float(match[1]) * _THOUSANDS[match[2]]


# Things that are counted: tokens, layers, channels.
Tokens = Annotated[int, WHOLE, BeforeValidator(_tokens), Field(ge=1, le=10**9)]
Count = Annotated[int, WHOLE, Field(ge=1, le=10**9)]
CountOrZero = Annotated[int, WHOLE, Field(ge=0, le=10**9)]
# Layers of a model, which are looked at one by one.
MOST_LAYERS = 10**5
Layers = Annotated[int, WHOLE, Field(ge=1, le=MOST_LAYERS)]
# GPUs, and the degrees that divide them.
MOST_GPUS = 2**20
Degree = Annotated[int, WHOLE, Field(ge=1, le=MOST_GPUS)]
# Shares of a whole.
Share = Annotated[float, Field(ge=1e-6, le=1)]
# A share as people write it: 0.05, or 5 %.
ShareOrPercent = Annotated[float, BeforeValidator(share), Field(ge=0, lt=1)]
ShareOrZero = Annotated[float, Field(ge=0, le=1), _or_zero(1e-9)]
# Quantities in SI units; strings may carry another unit of the same kind.
Bytes = Annotated[float, Unit("bytes"), _quantity("bytes"), Field(ge=0, le=1e18), _or_zero(0.01)]
BytesPerSecond = Annotated[float, Unit("bytes/s"), _quantity("bytes/s"), Field(ge=1e3, le=1e18)]
Seconds = Annotated[float, Unit("s"), _quantity("s"), Field(ge=0, le=1e6), _or_zero(1e-18)]
Hertz = Annotated[float, Unit("Hz"), _quantity("Hz"), Field(ge=1e3, le=1e15)]
Watts = Annotated[float, Unit("W"), _quantity("W"), Field(ge=0, le=1e9), _or_zero(1e-9)]
JoulesPerFlop = Annotated[float, Unit("J/FLOP"), _quantity("J/FLOP"), Field(ge=1e-24, le=1)]
JoulesPerByte = Annotated[float, Unit("J/byte"), _quantity("J/byte"), Field(ge=0, le=1e3), _or_zero(1e-24)]
DollarsPerHour = Annotated[float, Unit("USD/h"), _quantity("USD/h"), Field(ge=0, le=1e9), _or_zero(1e-9)]
