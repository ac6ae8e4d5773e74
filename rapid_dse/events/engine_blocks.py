"""One stage of an inference engine alone on the event engine: a layer of each kind, and the head, on the links of its own ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rapid_dse.events import runs
from rapid_dse.events.attribution import exposed
from rapid_dse.events.engine_places import PlacedEngine
from rapid_dse.events.engine_runs import TERMS, EngineTrial, stage_with
from rapid_dse.events.machine import Machine, fault_ends
from rapid_dse.events.programs.coarse_pipeline import Pass
from rapid_dse.events.programs.script import Script
from rapid_dse.events.programs.served_step import WholeLayers


@dataclass(frozen=True)
class StageTimes:
    """What a stage's ranks take, seconds by term: a layer of each kind, and the head of the model and that of drafts."""

    layers: tuple[Mapping[str, float], ...]
    heads: tuple[Mapping[str, float], ...]

    def passes(self) -> tuple[list[Pass], list[Pass]]:
        """As nodes of a graph of the pipeline."""
        return [Pass("layers", terms) for terms in self.layers], [Pass("head", terms) for terms in self.heads]

    def of_pass(self, trial: EngineTrial, stage: int) -> dict[str, float]:
        """All that a stage does in a pass, s by term."""
        share = trial.share(stage)
        parts = [self.layers[kind] for kind in share.kinds]
        if stage == trial.engine.stages - 1:
            parts += [self.heads[0], *[self.heads[-1], self.layers[share.draft_kind]] * share.drafts]
        return {term: sum(part[term] for part in parts) for term in TERMS}


def run_lengths(trial: EngineTrial, name: str) -> tuple[list[list[StageTimes]], dict[str, runs.Run]]:
    """The times of each stage in a pass of each length, and the runs by name."""
    times: list[list[StageTimes]] = []
    kept: dict[str, runs.Run] = {}
    for number, of_length in enumerate(trial.of_each_length()):
        of_stages, done = _run_stages(of_length, f"{name}_rest" if number else name)
        times.append(of_stages)
        kept |= done
    return times, kept


def _run_stages(trial: EngineTrial, name: str) -> tuple[list[StageTimes], dict[str, runs.Run]]:
    """The times of each stage in passes of one length: one without faults stands for all such; and the runs by name."""
    stages, faulty = range(trial.engine.stages), faulty_stages(trial.machine, trial.engine)
    wanted = sorted({*faulty, *([stage for stage in stages if stage not in faulty][-1:])})
    times_of_stages = {stage: _run_stage(trial, stage, f"{name} stage") for stage in wanted}
    healthy = next((times for stage, (times, _) in times_of_stages.items() if stage not in faulty), None)
    kept = {f"{name}_stage" if len(times_of_stages) == 1 else f"{name}_stage_{stage}": done for stage, (_, done) in times_of_stages.items()}
    times = [times_of_stages[stage][0] if stage in faulty else healthy for stage in stages]
    return [stage_times for stage_times in times if stage_times is not None], kept


def _run_stage(trial: EngineTrial, stage: int, name: str) -> tuple[StageTimes, runs.Run]:
    machine, engine, detail = trial.machine, trial.engine, trial.details[0]
    part, places = machine.part(engine.places[stage][None])
    alone = PlacedEngine(engine.cut, places, engine.prefix)
    where, (style,) = stage_with(trial.scenario, part, [alone])
    script, nodes, marks = Script(style), WholeLayers(detail.works, detail.heads), [0]
    after = nodes.layers(script, (), 0, 1)
    for number in range(1, len(detail.works)):
        after = nodes.layers(script, _mark(script, after, marks), number, 1)
    for number in range(len(detail.heads)):
        after = nodes.head(script, _mark(script, after, marks), number)
    role = np.full(part.topology.ranks, -1, np.int64)
    role[places.ravel()] = 0
    done = runs.run(trial.scenario, where, [script], role, name)
    spans = _spans(done, marks, detail.waits)
    return StageTimes(tuple(spans[: len(detail.works)]), tuple(spans[len(detail.works) :])), done


def _mark(script: Script, after: tuple[int, ...], marks: list[int]) -> tuple[int, ...]:
    """A moment between two parts, which no transfer crosses."""
    node = script.compute(after, 1e-9, "between", "host")
    marks.extend(node)
    return node


def _spans(done: runs.Run, marks: list[int], waits: str) -> list[dict[str, float]]:
    """Seconds by term between the marks, on the rank that ends last."""
    rank, graph, result = done.slowest, done.traced.graph, done.result
    first = int(graph.rank_ptr[rank])
    begins = [0, *(int(result.end_ns[first + mark]) for mark in marks[1:])]
    stops = [*(int(result.start_ns[first + mark]) for mark in marks[1:]), int(result.finish_ns[rank])]
    spans = []
    for begin, stop in zip(begins, stops, strict=True):
        terms = dict.fromkeys(TERMS, 0.0)
        for term, seconds in exposed(done.traced, result, rank, begin, stop).items():
            if seconds:
                terms[term if term in terms else waits] += seconds
        spans.append(terms)
    return spans


def faulty_stages(machine: Machine, engine: PlacedEngine) -> dict[int, list[tuple[int, int, float]]]:
    """The stages whose own links have faults, with these: both ends within one, along a dimension that it spans."""
    faults: dict[int, list[tuple[int, int, float]]] = {}
    for fault in machine.topology.faulty_links:
        ends, axis = fault_ends(machine.topology, fault)
        for stage, places in enumerate(engine.flat):
            spans = len(np.unique(machine.coordinates(places)[axis])) > 1
            if spans and np.isin(ends, places).all():
                faults.setdefault(stage, []).append(fault)
    return faults


def check_failed(machine: Machine, engine: PlacedEngine) -> None:
    """Refuses failed links within stages that lie on one dimension, where there is no way round them.

    Raises:
        ValueError: with the link, and what to use instead.
    """
    for stage, faults in faulty_stages(machine, engine).items():
        failed = [fault for fault in faults if fault[2] == 0]
        if failed and len(machine.part(engine.places[stage][None])[0].topology.dimensions) == 1:
            raise ValueError(
                f"hw.network.faulty_links has {list(failed[0])}: no way round a failed link lies within its stage of the engine, which "
                "this backend times alone; allowed: a factor above 0, or backend=full_astrasim_flattened"
            )


def faulty_engines(machine: Machine, engines: Sequence[PlacedEngine]) -> list[PlacedEngine]:
    """Those of several engines that have a rank at an end of a faulty link."""
    ends = [end for fault in machine.topology.faulty_links for end in fault[:2]]
    return [engine for engine in engines if np.isin(engine.flat, ends).any()]
