"""Chips that are held below their own power limit (``hw.power_limit``): a lower clock, and with it times and energy.

A chip whose work draws more than its limit lowers its clock, for everything that it does, until the mean of some tens of milliseconds is
the limit. Times at the chip's own limit (``hw.energy.tdp``) are those of the efficiencies that it holds there; below, all clocks are a
share of these. The work is priced at lower and lower shares until all rows draw no more than the limit, and each row takes the mean of
the two prices around its own. What needs less than the limit is as fast as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.cost.energy import CLOCK_EXPONENT, most_watts
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.account import columns_of_energy
from rapid_dse.simulate.inference.pricing import request_costs
from rapid_dse.simulate.memory import PeakMemory
from rapid_dse.simulate.results import Priced
from rapid_dse.simulate.step import StepTimes

FloatColumn = NDArray[np.float64]
Price = Callable[[Scenario], Priced]

STEP = 0.93  # from one clock that is tried to the next
LEAST = 1e-4  # of the clock: where a limit that hardly leaves anything beside idle power ends
FLOOR = 1e-3  # of dynamic energy that follows the clock, where the rest alone would draw the chip's own limit
UNLIMITED = 1e30  # W


@dataclass(frozen=True)
class Limited:
    """What is held by a power limit: results, and the share of the clock at the chip's own limit that each row runs at."""

    priced: Priced
    clock: FloatColumn


def at_clock(scenario: Scenario, share: float) -> Scenario:
    """The scenario on chips that run at a share of their clocks: arithmetic and on-chip memories are slower, and HBM where the SMs ask
    for less than it gives; joules of what the clock drives fall with the voltage."""
    hw, efficiency = scenario.hw, scenario.hw.efficiency
    slower = {name: getattr(hw, name).model_copy(update={"bandwidth": getattr(hw, name).bandwidth * share}) for name in _ON_CHIP}
    asked = max(hw.memory.bandwidth, hw.l2.bandwidth * efficiency.l2 / efficiency.memory)
    memory = hw.memory.model_copy(update={"bandwidth": min(hw.memory.bandwidth, asked * share)})
    less = share**CLOCK_EXPONENT
    flop = {name: joules * less for name, joules in hw.energy.flop.items()}
    energy = hw.energy.model_copy(update={"flop": flop, "l2": hw.energy.l2 * less})
    return _on(scenario, **slower, clock=hw.clock * share, memory=memory, energy=energy, power_limit=None)


_ON_CHIP = ("registers", "shared_memory", "l2")


def limited(scenario: Scenario, layouts: Layouts, price: Price) -> Limited:
    """Results of chips under ``hw.power_limit``, of which ``price`` gives those of chips without."""
    free = _on(scenario, power_limit=None)
    priced, clock = price(free), np.ones(len(layouts))
    limit = scenario.hw.power_limit
    most = most_watts(scenario.hw, scenario.hw.energy.tdp if limit is None else limit)
    beyond = priced.power_w_per_gpu > most * (1 + 1e-12)
    if limit is None or not beyond.any():
        return Limited(priced, clock)
    demand, share, before, watts = Demand.of(free, price), 1.0, priced, priced.power_w_per_gpu
    while beyond.any():
        share *= STEP
        now = price(at_clock(_unlimited(free), share))
        now = replace(now, mfu=now.mfu * share)  # against the peak at the chip's own clock
        drawn = demand.watts(now, share)
        crossing = beyond & ((drawn <= most) | (share < LEAST))
        if crossing.any():
            way = np.clip((watts - most) / np.maximum(watts - drawn, 1e-300), 0.0, 1.0)
            priced = _put(priced, _between(free, layouts, (before, now), way, most), crossing)
            clock = np.where(crossing, share * STEP ** (way - 1.0), clock)
        beyond, before, watts = beyond & ~crossing, now, drawn
    return Limited(priced, clock)


@dataclass(frozen=True)
class Demand:
    """What the work would draw without a limit beside ``idle`` watts, ``(n_layouts,)`` each: the part of its dynamic energy at the highest
    clock that falls with the clock, what is left of that part at the chip's own limit, and of all of it where that is not little enough.
    """

    idle: float
    clocked: FloatColumn
    clocked_share: FloatColumn
    total_share: FloatColumn

    @classmethod
    def of(cls, free: Scenario, price: Price) -> Demand:
        """That of the rows that ``price`` prices."""
        hw = free.hw
        network = hw.network.model_copy(
            update={"dimensions": tuple(dimension.model_copy(update={"energy": 0.0}) for dimension in hw.network.dimensions)}
        )
        core = _on(_unlimited(free), energy=_unlimited(free).hw.energy.model_copy(update={"hbm": 0.0}), network=network)
        every, clocked = (price(demand).power_w_per_gpu - hw.energy.idle for demand in (_unlimited(free), core))
        most = most_watts(hw, hw.energy.tdp) - hw.energy.idle
        clock = np.clip((most - (every - clocked)) / np.maximum(clocked, 1e-300), FLOOR, 1.0)
        slowing = np.minimum(1.0, most / np.maximum(every - clocked + clocked * clock, 1e-300))
        return cls(hw.energy.idle, clocked / np.maximum(every, 1e-300), clock, slowing)

    def watts(self, priced: Priced, share: float) -> FloatColumn:
        """What a GPU draws at a share of its clock at the chip's own limit, from prices there without a limit."""
        less = share**CLOCK_EXPONENT
        clocked = self.clocked * less / (1.0 - self.clocked + self.clocked * less)
        dynamic = priced.power_w_per_gpu - self.idle
        watts: FloatColumn = self.idle + dynamic * self.total_share * (1.0 - clocked + clocked * self.clocked_share)
        return watts


def _on(scenario: Scenario, **changed: Any) -> Scenario:
    """The scenario on a chip of which something is changed."""
    return scenario.model_copy(update={"hw": scenario.hw.model_copy(update=changed)})


def _unlimited(scenario: Scenario) -> Scenario:
    """The scenario on chips that draw whatever their work asks for."""
    return _on(scenario, energy=scenario.hw.energy.model_copy(update={"tdp": UNLIMITED}))


def _put(priced: Priced, other: Priced, rows: NDArray[np.bool_]) -> Priced:
    """``priced`` with the rows of another in some places."""
    return Priced(*(np.where(rows, getattr(other, f.name), getattr(priced, f.name)) for f in fields(Priced)))


def _between(scenario: Scenario, layouts: Layouts, ends: tuple[Priced, Priced], way: FloatColumn, watts: float) -> Priced:
    """Prices so far on the way from one to the other (0 to 1), of GPUs that draw so many watts."""
    first, last = ends

    def mean(name: str) -> FloatColumn:
        column: FloatColumn = getattr(first, name) * (1.0 - way) + getattr(last, name) * way
        return column

    if scenario.workload.kind == "training":
        step = StepTimes(**{f.name: mean(f"time_{f.name}_s") for f in fields(StepTimes)})
        memory = PeakMemory(**{f.name: mean(f"memory_{f.name}_bytes") for f in fields(PeakMemory)})
        return columns_of_energy(scenario, layouts, step, memory, watts * step.total * layouts.num_gpus)
    every = replace(first, **{f.name: mean(f.name) for f in fields(Priced) if f.name != "fits"})  # type: ignore[arg-type]  # fits has bools
    return request_costs(scenario, layouts, every, watts * layouts.num_gpus / every.requests_per_s)
