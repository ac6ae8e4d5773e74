"""Inference on the event-driven backends: what passes take is measured on graphs, what waits in queues follows from that in closed form.

The closed forms say how requests fare, and so which batches decode and which prompts share a pass. These passes are run. What they take
against the closed forms, term by term, holds for batches around them, and how requests fare is found again, until it no longer moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.device import operator_model
from rapid_dse.events import artifacts, runs
from rapid_dse.events.batch_passes import price_passes
from rapid_dse.events.engine_backends import ENGINE_BACKENDS
from rapid_dse.events.engine_blocks import faulty_engines
from rapid_dse.events.engine_places import PlacedEngine, place_engine, place_pools
from rapid_dse.events.engine_quantities import PassDetail, decode_detail, prefill_details
from rapid_dse.events.engine_runs import TERMS, EngineTimes, EngineTrial
from rapid_dse.events.handovers import measure_handover
from rapid_dse.events.machine import Machine
from rapid_dse.interconnect.closed_form import with_closed_form
from rapid_dse.parallel.engines import Engines
from rapid_dse.parallel.layouts import POOLS, Layouts
from rapid_dse.simulate.inference.distinct_steps import StepGrid, prompts_of
from rapid_dse.simulate.inference.pass_parts import PassParts
from rapid_dse.simulate.inference.passes import Drafted, EnginePass, drafted, drafted_parts, prefill_parts, prefilled, through_stages, timed
from rapid_dse.simulate.inference.pools import Handover, handed_over
from rapid_dse.simulate.inference.pricing import PreparedEngines, System, prepare, served, system
from rapid_dse.simulate.inference.widths import cache_bytes_per_token
from rapid_dse.simulate.results import Priced

if TYPE_CHECKING:
    from rapid_dse.events.one_by_one import Watch

FloatColumn = NDArray[np.float64]

ROUNDS_OF_LOADS = 4  # measurements of a row at most
NEAR = 0.05  # batches that differ by less share a measurement


@dataclass
class Sampled:
    """Passes that were measured, by batch: over the closed forms' by term, and in seconds."""

    factors: dict[float, dict[str, float]] = field(default_factory=dict)

    def near(self, batch: float) -> bool:
        """Whether a batch like that has been measured."""
        return any(abs(batch / known - 1.0) < NEAR for known in self.factors)

    def scaled(self, grid: StepGrid) -> StepGrid:
        """The grid with what was measured: between two batches by the batch's logarithm, beyond them as at the last one."""
        if not self.factors:
            return grid
        known = sorted(self.factors)
        at = [np.interp(np.log(grid.batches), np.log(known), [self.factors[batch][name] for batch in known]) for name in COLUMNS]
        return replace(grid, scale={name: column[:, None] for name, column in zip(COLUMNS, at, strict=True)})


COLUMNS = (*TERMS, "slowest")


class ServedRow:
    """One row: its engines (the one, or those of prompts and of tokens), where they stand, and what was measured of them."""

    def __init__(self, scenario: Scenario, layouts: Engines) -> None:
        self.scenario, self.assumed, self.layouts = scenario, with_closed_form(scenario), layouts
        self.backend, self.device = ENGINE_BACKENDS[scenario.backend.name], operator_model(scenario.hw)
        self.pooled = bool(layouts.pooled[0])
        self.cuts = [layouts.degrees(pool) for pool in (POOLS if self.pooled else (None,))]
        self.samples = (Sampled(), Sampled())
        self.handover = Handover()
        self.runs: dict[str, runs.Run] = {}
        self.machine, self.engines = self._placed()

    def _placed(self) -> tuple[Machine, list[PlacedEngine]]:
        if self.pooled:
            machine, pair = place_pools(self.scenario, (self.cuts[0], self.cuts[1]))
            return machine, list(pair)
        faulty = bool(self.scenario.hw.network.faulty_links)
        return place_engine(self.scenario, self.cuts[0], int(self.layouts.dp[0]) if faulty else 1)

    def check(self) -> None:
        """Refuses what the backend cannot run, before anything runs.

        Raises:
            ValueError: with what to use instead.
        """
        self.backend.check(self.scenario, self.machine, self.engines)

    def price(self) -> Priced:
        """The row's result columns."""
        (ready,) = prepare(self.assumed, self.layouts)
        for _ in range(ROUNDS_OF_LOADS):
            if not self._measure(system(self.assumed, self.layouts, self._scaled(ready)), ready):
                break
        if self.pooled:
            self._hand_over(system(self.assumed, self.layouts, self._scaled(ready)))
        return served(self.assumed, self.layouts, [self._scaled(ready)])

    def _scaled(self, ready: PreparedEngines) -> PreparedEngines:
        prompts, tokens = ready.costs
        first = replace(prompts, prefill=self.samples[0].scaled(prompts.prefill))
        second = replace(tokens, decode=self.samples[1].scaled(tokens.decode))
        if not self.pooled:
            first = second = replace(first, decode=second.decode)
        return replace(ready, costs=(first, second), handover=self.handover)

    def _measure(self, system: System, ready: PreparedEngines) -> bool:
        """Measures the passes that requests meet and that have not been; whether there were any."""
        prompts, decoding = self.samples
        new = False
        for batch in dict.fromkeys(self._prompts(system, ready)):
            if not prompts.near(batch):
                new, prompts.factors[batch] = True, self._prefill_factors(batch)
        for batch, flying in dict.fromkeys(self._batches(system)):
            if not decoding.near(batch) and self.assumed.workload.lengths[1] > 1:
                new, decoding.factors[batch] = True, self._decode_factors(batch, flying)
        return new

    def _prompts(self, system: System, ready: PreparedEngines) -> list[float]:
        """Prompts of an attention rank that share a pass."""
        if self.pooled:
            return [1.0, float(ready.costs[0].together[0])]
        return [max(1.0, float(system.served.together[0] / self.cuts[0].attention_dp[0]))]

    def _batches(self, system: System) -> list[tuple[float, int]]:
        """Sequences of an attention rank that decode at a time, and batches in flight: as many as run, and what sets the most."""
        engine, fared = system.engine, system.served
        pp, copies = int(engine.cut.pp[0]), int(engine.cut.attention_dp[0])
        flying = max(1, min(pp, round(float(fared.running[0]) / copies)))
        most = [(max(1.0, float(engine.capacity[0] / engine.ranks[0])), pp)] if self.layouts.request_rate[0] > 0 or self.pooled else []
        return [(float(fared.rows[0]), flying), *most]

    def _trials(self, engine: int, details: tuple[PassDetail, ...], flying: int, *, returns: bool) -> list[EngineTrial]:
        """A pass on the engine; where links are faulty on each of several replicas that has one of them, or on the first."""
        if self.scenario.backend.engine == "astrasim" and len(self.machine.topology.dimensions) > 1:
            details = tuple(
                detail.by_library() for detail in details
            )  # groups of such a network have no all-to-all there that sends to all at once
        if self.pooled or len(self.engines) == 1:
            return [EngineTrial(self.scenario, self.machine, self.engines[engine], details, flying, returns)]
        trials = []
        for placed in faulty_engines(self.machine, self.engines) or self.engines[:1]:
            part, places = self.machine.part(placed.places)
            trials.append(EngineTrial(self.scenario, part, replace(placed, places=places), details, flying, returns))
        return trials

    def _prefill(self, batch: float, parts: tuple[PassParts, ...]) -> list[EngineTrial]:
        details = prefill_details(self.assumed, self.cuts[0], batch, parts, prompts_of(self.assumed))
        return self._trials(0, details, 1, returns=False)

    def _decode(self, batch: float, flying: int, parts: Drafted) -> list[EngineTrial]:
        return self._trials(len(self.cuts) - 1, (decode_detail(self.assumed, self.cuts[-1], batch, parts),), flying, returns=True)

    def _prefill_parts(self, batch: float) -> tuple[PassParts, ...]:
        return prefill_parts(self.assumed, self.cuts[0], np.array([batch]), prompts_of(self.assumed), self.device)

    def _decode_parts(self, batch: float) -> Drafted:
        return drafted_parts(self.assumed, self.cuts[-1], np.array([batch]), self.device)

    def _times(self, trials: Sequence[EngineTrial], name: str) -> EngineTimes:
        """What a pass takes on the slowest of the engines: the load is dealt out evenly, so that all end with it."""
        times = []
        for number, trial in enumerate(trials):
            engine_times, done = self.backend.measure(trial, name if len(trials) == 1 else f"{name}_{number}")
            self.runs |= done
            times.append(engine_times)
        return max(times, key=lambda name: name.total)

    def _prefill_factors(self, batch: float) -> dict[str, float]:
        serving, prompts, parts = self.assumed.software.serving, prompts_of(self.assumed), self._prefill_parts(batch)
        works = prefilled(self.assumed, self.cuts[0], parts, prompts)
        closed = through_stages(works, prompts.chunks, serving, serving.prefill_efficiency)
        return _over(self._times(self._prefill(batch, parts), "prefill"), closed)

    def _decode_factors(self, batch: float, flying: int) -> dict[str, float]:
        parts = self._decode_parts(batch)
        closed = timed(drafted(self.assumed, self.cuts[-1], parts), self.assumed.software.serving)
        return _over(self._times(self._decode(batch, flying, parts), "decode"), closed)

    def _hand_over(self, system: System) -> None:
        """Measures what a cache meets on its way beside what runs."""
        (batch, flying), *_ = self._batches(system)
        (prompts,), (decoding,) = self._prefill(1.0, self._prefill_parts(1.0)), self._decode(batch, flying, self._decode_parts(batch))
        prompt, _ = self.assumed.workload.lengths
        closed = float(handed_over(self.assumed, self.cuts[0], self.cuts[1])[0])
        step = float(system.step.total[0])
        self.handover, done = measure_handover(
            self.backend, (prompts, decoding), step, (prompt * cache_bytes_per_token(self.assumed), closed)
        )
        self.runs |= done


def _over(times: EngineTimes, closed: EnginePass) -> dict[str, float]:
    """What was measured over what the closed forms have, by column; 1 where neither has anything.

    What has no counterpart there is put to sends between stages, or to kernels where there are none.
    """
    known = {name: float(getattr(closed, name)[0]) for name in COLUMNS}
    terms = dict(times.terms)
    for name in TERMS[1:]:
        if known[name] <= 0 < terms[name]:
            terms["pp" if known["pp"] > 0 else "compute"] += terms[name]
            terms[name] = 0.0
    measured = terms | {"slowest": times.slowest}
    return {name: measured[name] / known[name] if known[name] > 0 else 1.0 for name in COLUMNS}


def _check_model(scenario: Scenario, asked: str) -> None:
    if not scenario.model.of_kind.decodes:
        raise ValueError(
            f"{asked}: a model of the kind {scenario.model.kind} decodes nothing, and its pass has no timeline in closed form; "
            "allowed: false, an event-driven backend, or workload=training"
        )


def measured(scenario: Scenario, layouts: Layouts) -> dict[str, runs.Run]:
    """The runs of the only row, by name.

    Raises:
        ValueError: as ``price``.
    """
    assert isinstance(layouts, Engines)
    _check_model(scenario, "backend.artifacts.timeline=true")
    one = ServedRow(scenario, layouts)
    one.price()
    return one.runs


def price(scenario: Scenario, layouts: Layouts, watch: Watch | None = None, names: Sequence[str] | None = None) -> Priced:
    """Prices legal, resolved engines one by one.

    Args:
        watch: is shown the runs of each row by name.
        names: the folder of each row's artifacts; None: numbers, where there are several.

    Raises:
        ValueError: what cannot run on this backend, with what to use instead, before anything runs.
    """
    assert isinstance(layouts, Engines)
    if not scenario.model.of_kind.decodes:
        return price_passes(scenario, layouts, watch, names)
    runs.check_backend(scenario)
    every = [ServedRow(scenario, layouts.take(np.array([row]))) for row in range(len(layouts))]
    for one in every:
        one.check()
    parts = []
    for number, one in enumerate(every):
        parts.append(one.price())
        name = names[number] if names else None if len(every) == 1 else f"{number:03d}"
        artifacts.keep(scenario, one.runs, name)
        if watch is not None:
            watch(one.runs)
    return Priced.concatenate(parts)
