"""Numbers of a scenario that can be turned, each over a grid of values: what a person would write down, in steps that can be named."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rapid_dse.common.remembered import remembered
from rapid_dse.config.fields import Frozen
from rapid_dse.config.scenario import Scenario
from rapid_dse.sweep.compose import value_at, with_values

FACTOR = 64.0  # how far a lever is turned: to 1/64 and to 64 times its value
_GIB = 1024.0**3
_DIGITS = 1000  # the grid of factors has four digits


class ValueGrid(ABC):
    """Values by number, ascending."""

    @abstractmethod
    def value(self, at: int) -> float:
        """The value number ``at``."""

    @abstractmethod
    def around(self, value: float) -> tuple[int, int]:
        """The numbers of the nearest grid values below and above ``value``, which lies on neither."""


@dataclass(frozen=True)
class EvenSteps(ValueGrid):
    """Multiples of a step."""

    step: float

    def value(self, at: int) -> float:
        return at * self.step

    def around(self, value: float) -> tuple[int, int]:
        at = value / self.step
        near = round(at)
        return (near - 1, near + 1) if math.isclose(at, near, rel_tol=1e-12) else (math.floor(at), math.ceil(at))


class FourDigits(ValueGrid):
    """All numbers of four significant digits."""

    def value(self, at: int) -> float:
        decade, rest = divmod(at, 9 * _DIGITS)
        return float(f"{_DIGITS + rest}e{decade - 3}")

    def around(self, value: float) -> tuple[int, int]:
        decade = math.floor(math.log10(value))
        place = value / 10.0 ** (decade - 3) - _DIGITS
        base, near = 9 * _DIGITS * decade, round(place)
        return (base + near - 1, base + near + 1) if abs(place - near) < 1e-6 else (base + math.floor(place), base + math.ceil(place))


@dataclass(frozen=True)
class Lever:
    """A number of a scenario.

    Attributes:
        key: as an override has it.
        grid: values that it may take.
        low, high: the least and the largest to look at.
        follows: keys that take the same value (a memory's capacity beside what is usable of it).
    """

    key: str
    grid: ValueGrid
    low: float
    high: float
    follows: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        """The part of the scenario that it belongs to."""
        return self.key.split(".")[0]


@remembered(8)
def turned(scenario: Scenario, key: str, value: Any, follows: tuple[str, ...] = ()) -> Scenario:
    """The scenario with another value of one key.

    Args:
        follows: keys that may not be smaller than it, and are raised to it.

    Raises:
        ValueError: where the value is none of the key's.
    """
    section = key.split(".")[0]
    values = {other: value for other in follows if value_at(scenario, other) < value} | {key: value}
    part: Frozen = getattr(scenario, section)
    tree = with_values({section: part.model_dump(mode="json")}, values)[section]
    return scenario.model_copy(update={section: type(part).model_validate(tree)})


# Keys that are factors of a time: what chips, links and hosts do, and what the framework costs beside them.
_SCALES = (
    "hw.clock",
    "hw.memory.bandwidth",
    "hw.l2.bandwidth",
    "hw.price",
    "cluster.hop_latency",
    "cluster.node_skew",
    "cluster.all_reduce_wait",
    "software.host_layer",
    "software.host_collective_layer",
    "software.host_micro_batch",
    "software.host_step",
    "software.send_receive",
    "software.elementwise_traffic",
    "software.layer_latency",
    "software.collective_latency",
    "software.step_latency",
    "software.sequence_latency",
)
# Shares, from 0 to 1.
_SHARES = (
    "software.dp_overlap",
    "software.scatter_overlap",
    "software.all_reduce_overlap",
    "software.parameter_gather_overlap",
    "software.tp_overlap",
    "software.tp_backward_overlap",
    "software.cp_overlap",
    "software.pp_overlap",
    "software.overlap_slowdown",
    "software.decode_wait",
    "cluster.fabric_efficiency",
)


def levers(scenario: Scenario) -> Iterator[Lever]:
    """Everything of a scenario that is turned, with the values that it may take."""
    dimensions = range(len(scenario.hw.network.dimensions))
    links = [f"hw.network.dimensions.{at}.{name}" for at in dimensions for name in ("bandwidth", "latency")]
    for key in (*links, *_SCALES):
        now = value_at(scenario, key)
        if now:
            yield Lever(key, FourDigits(), now / FACTOR, now * FACTOR)
    usable = scenario.hw.memory.usable
    yield Lever("hw.memory.usable", EvenSteps(_GIB / 10), usable / FACTOR, usable * FACTOR, ("hw.memory.capacity",))
    for key in _SHARES:
        if value_at(scenario, key) is not None and not _measured(scenario, key):
            yield Lever(key, EvenSteps(0.001), 0.0, 1.0)


def _measured(scenario: Scenario, key: str) -> bool:
    """Whether a key of the cluster follows from measured bus bandwidths, and is not given beside them."""
    return scenario.cluster.allreduce_busbw is not None and key in ("cluster.fabric_efficiency", "cluster.hop_latency", "cluster.trees")
