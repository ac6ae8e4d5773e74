"""Field types that every part of the schema shares."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from rapid_dse.config.units import to_si


class Frozen(BaseModel):
    """A part of the configuration: immutable, and no key but the declared ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)


def _whole(value: Any) -> Any:
    # A case table holds 8.0 where somebody's spreadsheet did; True and '8' are mistakes.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool | str):
        raise ValueError(f"{value!r} is no integer")
    return value


def _quantity(unit: str) -> BeforeValidator:
    return BeforeValidator(lambda value: to_si(value, unit))


Count = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
CountOrZero = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
ShareOrZero = Annotated[float, Field(ge=0, le=1)]
Bytes = Annotated[float, _quantity("bytes"), Field(ge=0)]
BytesPerSecond = Annotated[float, _quantity("bytes/s"), Field(gt=0)]
Seconds = Annotated[float, _quantity("s"), Field(ge=0)]
Hertz = Annotated[float, _quantity("Hz"), Field(gt=0)]
FlopsPerSecond = Annotated[float, _quantity("FLOP/s"), Field(gt=0)]
Watts = Annotated[float, _quantity("W"), Field(ge=0)]
JoulesPerFlop = Annotated[float, _quantity("J/FLOP"), Field(ge=0)]
JoulesPerByte = Annotated[float, _quantity("J/byte"), Field(ge=0)]
DollarsPerHour = Annotated[float, _quantity("USD/h"), Field(ge=0)]
