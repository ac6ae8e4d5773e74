"""A transformer layer on the event engine: what its passes take on the links of its own block of ranks.

A block is a tensor- and context-parallel group of one stage, with all others that its ranks share experts with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypeAlias

import numpy as np

from rapid_dse.cost.overlap import Window, exposed
from rapid_dse.events import runs
from rapid_dse.events.attribution import exposed as exposed_terms
from rapid_dse.events.layout_detail import LayoutDetail
from rapid_dse.events.machine import Machine, fault_ends
from rapid_dse.events.programs.coarse_pipeline import Pass
from rapid_dse.events.programs.end_programs import PASSES
from rapid_dse.events.programs.layer_program import LayerWork, backward, forward
from rapid_dse.events.programs.script import After, Script
from rapid_dse.events.programs.whole_step import LayerPasses
from rapid_dse.events.step_runs import stage_for
from rapid_dse.parallel.expert_groups import ExpertGroups
from rapid_dse.simulate.layer import Layer, Layers
from rapid_dse.simulate.vocabulary import Ends

RankBlock: TypeAlias = tuple[int, int]  # its stage, and which of ``ExpertGroups.blocks`` it is there


@dataclass(frozen=True)
class LayerTimes:
    """A layer's passes: seconds by term of forward and backward, on the rank that ends last.

    ``weights`` is the part of the backward pass that weight gradients take, ``inputs`` the pass without them, where transfers hide behind
    them that it shows (empty: none do), ``regather`` a gather of a boundary's shares; ``ends`` are
    the passes of embedding and head, by their names in ``trace.ends.PASSES``.
    """

    forward: dict[str, float]
    backward: dict[str, float]
    weights: float
    regather: float
    ends: Mapping[str, dict[str, float]]
    inputs: Mapping[str, float] = field(default_factory=dict)

    def end(self, part: str) -> float:
        """Seconds of the embedding's passes, or of the head's."""
        return float(sum(sum(self.ends[f"{part}_{direction}"].values()) for direction in ("forward", "backward")))

    def end_passes(self) -> dict[str, Pass]:
        """The passes of embedding and head, for graphs of the pipeline."""
        return {name: Pass(name.replace("_", " "), terms) for name, terms in self.ends.items()}

    def seconds(self, direction: str) -> float:
        """The whole pass, s."""
        return float(sum(getattr(self, direction).values()))

    def passes(self) -> tuple[Pass, ...]:
        """Forward, backward and the latter without weight gradients where it was run, for graphs of the pipeline."""
        inputs = (Pass("layers backward, input gradients", self.inputs),) if self.inputs else ()
        return Pass("layers forward", self.forward), Pass("layers backward", self.backward), *inputs


def run_layers(one: LayoutDetail, cluster: Machine, block: RankBlock) -> tuple[list[LayerTimes], dict[str, runs.Run]]:
    """Runs a layer of each kind on one block of ranks alone; the runs by name."""
    every = [run_layer(one, cluster, block, kind) for kind in range(len(one.works))]
    name = f"block_{block[0]}_{block[1]}"
    names = [name] if len(every) == 1 else [f"{name}_layer_{kind}" for kind in range(len(every))]
    return [times for times, _ in every], {name: run for name, (_, run) in zip(names, every, strict=True)}


def run_layer(one: LayoutDetail, cluster: Machine, block: RankBlock, kind: int) -> tuple[LayerTimes, runs.Run]:
    """Runs the forward and backward pass of a layer of one kind on one block of ranks alone.

    Args:
        block: its stage and its number there.

    Raises:
        ValueError: what the engine cannot run.
    """
    experts = one.experts
    replicas = experts.blocks[block[1]]
    part, places = cluster.part(cluster.rank[block[0], replicas][None])
    stage = stage_for(one, part, places, experts.of(replicas))
    work = one.works[kind]
    script, marks = _layer_script(one, work, stage)
    role = np.full(part.topology.ranks, -1, np.int64)
    role[places.ravel()] = 0
    done = runs.run(one.scenario, stage, [script], role, "block")
    rank = done.slowest
    first = int(np.searchsorted(done.traced.graph.rank, rank))
    begins = [0, *(int(done.result.end_ns[first + mark]) for mark in marks)]
    stops = [*(int(done.result.start_ns[first + mark]) for mark in marks), None]
    spans = [exposed_terms(done.traced, done.result, rank, begin, stop) for begin, stop in zip(begins, stops, strict=True)]
    # within a block ranks wait for those of their own group
    waits = "tp" if work.tp > 1 else "cp" if work.ring or work.trades else "ep"
    for terms in spans:
        terms[waits] += terms.pop("bubble")
        terms["bubble"] = 0.0
    weights = work.weight_gradient if one.schedule.splits_backward else 0.0
    inputs = spans.pop(2) if _shows_alone(one, work) else {}
    ahead, back, regather, *others = spans
    ends = dict(zip(PASSES, others, strict=True)) if others else _end_compute(one)
    return LayerTimes(ahead, back, weights, float(sum(regather.values())), ends, inputs), done


def _shows_alone(one: LayoutDetail, work: LayerWork) -> bool:
    """Whether a backward pass without weight gradients shows transfers that hide behind them else."""
    return one.schedule.splits_backward and work.tp_backward_hidden > 0


def _end_compute(one: LayoutDetail) -> dict[str, dict[str, float]]:
    """The passes of embedding and head of a rank that shares them with no other."""
    block = one.block
    seconds = {"embedding_forward": block.embedding, "head_forward": block.head_forward, "head_backward": block.head_backward}
    return {name: {"compute": float(seconds[name][0]) if name in seconds else 0.0} for name in PASSES}


def _layer_script(one: LayoutDetail, work: LayerWork, stage: runs.Stage) -> tuple[Script, list[int]]:
    """The program of a rank: forward, backward, the gather of a boundary, and where tensor parallelism has transfers in them the passes
    of embedding and head; a moment between them, which no transfer crosses."""
    script, passes = Script(stage.style), LayerPasses((work,), one.around)
    marks: list[int] = []
    after = forward(script, work, ())

    def mark() -> After:
        marks.extend(between := script.compute(after, 1e-9, "between", "host"))
        return between

    after = backward(script, work, mark())
    after = backward(script, work, mark(), weights=False) if _shows_alone(one, work) else after
    after = mark()
    after = passes.regather(script, after) if one.degree("pp") > 1 else after
    for name in PASSES if work.tp > 1 else ():
        after = passes.end(script, mark(), name)
    return script, marks


def measured_layers(one: LayoutDetail, times: Sequence[LayerTimes]) -> Layers:
    """The closed forms' layers with the passes that the engine measured."""
    layers = tuple(_measured_layer(one, layer, times_of_layer) for layer, times_of_layer in zip(one.layers.of_kinds, times, strict=True))
    around = times[0].ends
    ends = Ends(**{part.name: _column(sum(around[part.name].values()) - around[part.name]["compute"]) for part in fields(Ends)})
    return replace(one.layers, of_kinds=layers, ends=ends)


def _column(value: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([value])


def _measured_layer(one: LayoutDetail, old: Layer, times: LayerTimes) -> Layer:
    """The closed forms' layer with measured passes; exposed data-parallel transfers follow from them."""
    ahead, back = _column(times.seconds("forward")), _column(times.seconds("backward"))
    share = one.scenario.software.overlap.dp_overlap
    late, beside_late = old.late, old.beside_late
    if times.inputs:
        beside_late = np.clip(_column(sum(times.inputs.values())) - back + times.weights, 0.0, times.weights)
        late = times.weights - beside_late
    return replace(
        old,
        compute=_column(times.forward["compute"] + times.backward["compute"]),
        tp=_column(times.forward["tp"] + times.backward["tp"]),
        cp=_column(times.forward["cp"] + times.backward["cp"]),
        ep=_column(times.forward["ep"] + times.backward["ep"]),
        forward=ahead,
        backward=back,
        late=late,
        beside_late=beside_late,
        dp_backward=exposed(old.sharded.backward, share, Window(back - old.delayed, old.sent.backward.busy)),
        dp_forward=exposed(old.sharded.forward, share, Window(ahead, old.sent.forward.busy)),
    )


def check_failed_links(cluster: Machine, experts: ExpertGroups) -> None:
    """Refuses failed links within blocks that lie on one dimension, where there is no way round them.

    Raises:
        ValueError: with the link, and what to use instead.
    """
    for fault in cluster.topology.faulty_links:
        for stage, number in blocks_of(cluster, experts, fault) if fault[2] == 0 else ():
            part, _ = cluster.part(cluster.rank[stage, experts.blocks[number]])
            if len(part.topology.dimensions) == 1:
                raise ValueError(
                    f"hw.network.faulty_links has {list(fault)}: no way round a failed link lies within its tensor-, context- and "
                    "expert-parallel group, which this backend times alone; allowed: a factor above 0, or backend=full_astrasim_flattened"
                )


def faulty_blocks(cluster: Machine, experts: ExpertGroups) -> dict[RankBlock, None]:
    """The blocks whose own links have faults: both ends within one, along a dimension that it spans."""
    blocks: dict[RankBlock, None] = {}
    for fault in cluster.topology.faulty_links:
        blocks |= dict.fromkeys(blocks_of(cluster, experts, fault))
    return blocks


def blocks_of(cluster: Machine, experts: ExpertGroups, fault: tuple[int, int, float]) -> list[RankBlock]:
    """The blocks that a faulty link slows; none where it carries gradients or stages alone."""
    ends, axis = fault_ends(cluster.topology, fault)
    number = np.empty(cluster.rank.shape[1], np.int64)
    number[experts.blocks] = np.arange(len(experts.blocks))[:, None]
    inside = [{(int(p), int(number[d])) for p, d, _, _ in np.argwhere(cluster.rank == end)} for end in ends]

    def spans(block: RankBlock) -> bool:
        return len(np.unique(cluster.coordinates(cluster.rank[block[0], experts.blocks[block[1]]])[axis])) > 1

    return sorted(block for block in set.intersection(*inside) if spans(block))
