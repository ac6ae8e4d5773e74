"""The dimensions of a study: choices and numbers, and the Optuna distributions behind them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Choice:
    """One of several values.

    Attributes:
        key: the override key or group.
        values: the values, in order.
        ordered: whether neighbours in the list are alike.
    """

    key: str
    values: tuple[Any, ...]
    ordered: bool = False

    @property
    def labels(self) -> tuple[Any, ...]:
        """The values as storages can hold them: what is no single value as JSON."""
        return tuple(value if isinstance(value, bool | int | float | str) else json.dumps(value) for value in self.values)

    def distribution(self) -> BaseDistribution:
        """Categorical: on layouts it finds more than an ordered one does, whose neighbours share too little."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.labels)

    def value(self, label: Any) -> Any:
        """The value behind a label."""
        return self.values[self.index(label)]

    def index(self, label: Any) -> int:
        """Position of a label; 1 and True are different."""
        return next(i for i, own in enumerate(self.labels) if own == label and type(own) is type(label))

    def draw(self, rng: np.random.Generator) -> Any:
        """A label, each as likely."""
        return self.labels[int(rng.integers(len(self.values)))]


@dataclass(frozen=True)
class Number:
    """Any number from ``low`` to ``high``; ``whole`` where the key takes integers, ``log`` where factors count."""

    key: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def distribution(self) -> BaseDistribution:
        """Float or integer."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def value(self, label: Any) -> Any:
        """The number itself."""
        return label

    def draw(self, rng: np.random.Generator) -> Any:
        """A number, each as likely (each factor, where factors count)."""
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = float(rng.uniform(*ends))
        value = min(max(math.exp(value) if self.log else value, self.low), self.high)
        return round(value) if self.whole else value


Dimension = Choice | Number


def distributions(dimensions: Sequence[Dimension]) -> dict[str, BaseDistribution]:
    """By key, in order."""
    return {dimension.key: dimension.distribution() for dimension in dimensions}


def described(dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """What a storage keeps to tell one space from another: plain JSON by key."""
    settings: dict[str, Any] = {}
    for dimension in dimensions:
        if isinstance(dimension, Choice):
            settings[dimension.key] = list(dimension.labels)
        else:
            settings[dimension.key] = {"low": dimension.low, "high": dimension.high, "log": dimension.log, "whole": dimension.whole}
    return settings


def difference(stored: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """The first dimension in which two described spaces differ, in words; None where they are equal."""
    for key in [*stored, *(key for key in own if key not in stored)]:
        if stored.get(key) != own.get(key):
            was, now = (json.dumps(side[key]) if key in side else "not searched" for side in (stored, own))
            return f"{key} was {was}, now it is {now}"
    return None
