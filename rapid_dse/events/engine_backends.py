"""A pass of an inference engine on each event-driven backend, and what each of them refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rapid_dse.config.scenario import Scenario
from rapid_dse.events import runs
from rapid_dse.events.engine_blocks import check_failed, faulty_stages, run_lengths
from rapid_dse.events.engine_places import PlacedEngine
from rapid_dse.events.engine_runs import TERMS, EngineTimes, EngineTrial, NodesOf, run_engine
from rapid_dse.events.machine import Machine, fault_ends
from rapid_dse.events.programs.served_step import BlockLayers, WholeLayers
from rapid_dse.interconnect import closed_form
from rapid_dse.simulate.inference.prompts import passes_taken


@dataclass(frozen=True)
class EngineBackend:
    """How a backend prices an engine.

    Attributes:
        check: refuses a machine with engines on it before anything runs; ``ValueError`` with what to use instead.
        write: how the layers of each stage become nodes of a graph of the whole engine, and the runs that this took; None: there is no
            such graph, and what goes on between stages and pools is priced in closed form.
        groups: whether these nodes have transfers within a stage.
    """

    check: Callable[[Scenario, Machine, Sequence[PlacedEngine]], None]
    write: Callable[[EngineTrial, str], tuple[NodesOf, dict[str, runs.Run]]] | None
    groups: bool

    def measure(self, trial: EngineTrial, name: str) -> tuple[EngineTimes, dict[str, runs.Run]]:
        """What a pass takes, and the runs that say so by name."""
        if self.write is None:
            return _from_stages(trial, name)
        nodes, kept = self.write(trial, name)
        times, done = run_engine(trial, nodes, name, groups=self.groups)
        return times, kept | {name: done}


def check_hybrid(scenario: Scenario, machine: Machine, engines: Sequence[PlacedEngine]) -> None:
    """Refuses networks and faults that only closed forms would meet: those of sends between stages and of caches between pools."""
    runs.check_links(machine)
    network, outside = scenario.hw.network, "allowed with it: backend=full_astrasim_hierarchical, full_astrasim_flattened"
    for index, dimension in enumerate(network.dimensions):
        alone = network.model_copy(update={"dimensions": (dimension,), "faulty_links": ()})
        if not closed_form.has_closed_form(alone) and index in _outside_stages(machine, engines):
            raise ValueError(
                f"hw.network.dimensions.{index}.topology={dimension.topology} carries what goes from stage to stage or from pool to pool, "
                f"which hybrid prices in closed form, and it has none; {outside}"
            )
    for fault in machine.topology.faulty_links:
        if not any(fault in faults for engine in engines for faults in faulty_stages(machine, engine).values()):
            raise ValueError(
                f"hw.network.faulty_links has {list(fault)}, which no group of ranks within a stage crosses: hybrid prices all else in "
                f"closed form; {outside}"
            )
    _check_stages(scenario, machine, engines)


def _outside_stages(machine: Machine, engines: Sequence[PlacedEngine]) -> set[int]:
    """The dimensions of the hardware along which stages or engines lie apart."""
    ranks = set()
    for index, column in zip(
        machine.dimension, machine.coordinates(np.concatenate([engine.flat.ravel() for engine in engines])), strict=True
    ):
        lines, first = [], 0
        for engine in engines:
            lines.append(column[first : first + engine.flat.size].reshape(engine.stages, -1))
            first += engine.flat.size
        if any((line != line[:1]).any() for line in lines) or len({int(line.flat[0]) for line in lines}) > 1:
            ranks.add(index)
    return ranks


def check_hierarchical(scenario: Scenario, machine: Machine, engines: Sequence[PlacedEngine]) -> None:
    """Refuses links between the switches of a fat tree, and failed links that a stage alone has no way round."""
    runs.check_links(machine)
    for fault in machine.topology.faulty_links:
        fault_ends(machine.topology, fault)
    _check_stages(scenario, machine, engines)
    runs.check_engine(scenario, 1, machine.topology)


def _check_stages(scenario: Scenario, machine: Machine, engines: Sequence[PlacedEngine]) -> None:
    for engine in engines:
        check_failed(machine, engine)
        runs.check_engine(scenario, _routes(scenario, [engine]), machine.part(engine.places[0][None])[0].topology)


def _routes(scenario: Scenario, engines: Sequence[PlacedEngine]) -> int:
    """Ranks that send tokens to each other's experts, 1 where none do."""
    return (
        max(engine.places.shape[1] * engine.places.shape[2] if engine.places.shape[1] > 1 else 1 for engine in engines)
        if (scenario.model.num_experts)
        else 1
    )


def check_flattened(scenario: Scenario, machine: Machine, engines: Sequence[PlacedEngine]) -> None:
    """Takes any link of the machine."""
    runs.check_links(machine)
    runs.check_engine(scenario, _routes(scenario, engines), machine.topology)


def _from_stages(trial: EngineTrial, name: str) -> tuple[EngineTimes, dict[str, runs.Run]]:
    """Each stage on the event engine, sends between stages and the order of batches in closed form."""
    times, kept = run_lengths(trial, name)
    terms, slowest, ahead = dict.fromkeys(TERMS, 0.0), 0.0, 0
    for one, of_stages in zip(trial.of_each_length(), times, strict=True):
        stages = [stage_times.of_pass(one, stage) for stage, stage_times in enumerate(of_stages)]
        alone = {term: sum(stage[term] for stage in stages) for term in TERMS}
        alone["pp"] += (len(stages) - 1) * one.details[0].hop_seconds
        longest, chunks = max(sum(stage.values()) for stage in stages), one.details[0].chunks
        share = float(passes_taken(chunks, ahead, np.array(longest / sum(alone.values()))))
        terms = {term: terms[term] + seconds * share for term, seconds in alone.items()}
        slowest, ahead = slowest + chunks * longest, ahead + chunks
    return EngineTimes(terms, slowest), kept


def _as_blocks(trial: EngineTrial, name: str) -> tuple[NodesOf, dict[str, runs.Run]]:
    """Each stage on the event engine; of its layers the pipeline's graph has the times."""
    times, kept = run_lengths(trial, name)
    return lambda labels: [[BlockLayers(labels, *stage_times.passes()) for stage_times in of_stages] for of_stages in times], kept


def _whole(trial: EngineTrial, name: str) -> tuple[NodesOf, dict[str, runs.Run]]:
    """Every kernel and every transfer of every rank."""
    nodes = [[WholeLayers(detail.works, detail.heads)] * trial.engine.stages for detail in trial.details]
    return lambda _: nodes, {}


ENGINE_BACKENDS = {
    "hybrid": EngineBackend(check_hybrid, None, groups=False),
    "full_astrasim_hierarchical": EngineBackend(check_hierarchical, _as_blocks, groups=False),
    "full_astrasim_flattened": EngineBackend(check_flattened, _whole, groups=True),
}
