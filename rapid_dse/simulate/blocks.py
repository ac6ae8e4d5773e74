"""A transformer layer on the event engine: what its passes take on the links of its own tensor- and context-parallel group."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rapid_dse.layouts import ZERO_BUBBLE
from rapid_dse.network.cluster import Cluster, fault_ends
from rapid_dse.simulate import runs
from rapid_dse.simulate.exposed import exposed
from rapid_dse.simulate.quantities import Priced1
from rapid_dse.simulate.training import Layer, layer_gathers
from rapid_dse.trace.block import backward, forward
from rapid_dse.trace.coarse import Pass
from rapid_dse.trace.flattened import LayerPasses
from rapid_dse.trace.graph import Ints
from rapid_dse.trace.script import Script


@dataclass(frozen=True)
class LayerTimes:
    """A layer's passes: seconds by term of forward and backward, on the rank that ends last.

    ``weights`` is the part of the backward pass that weight gradients take, ``regather`` a gather of a boundary's shares.
    """

    forward: dict[str, float]
    backward: dict[str, float]
    weights: float
    regather: float

    def seconds(self, direction: str) -> float:
        """The whole pass, s."""
        return float(sum(getattr(self, direction).values()))

    def passes(self) -> tuple[Pass, Pass]:
        """Forward and backward, for graphs of the pipeline."""
        return Pass("layers forward", self.forward), Pass("layers backward", self.backward)


def run_layer(one: Priced1, cluster: Cluster, block: Ints) -> tuple[LayerTimes, runs.Run]:
    """Runs one layer's forward and backward pass on one tensor- and context-parallel group alone.

    Args:
        block: the group's places, ``(cp, tp)``.

    Raises:
        ValueError: what the engine cannot run.
    """
    part, places = cluster.part(block)
    stage = block_stage(one, part, places)
    script, marks = _layer_script(one, stage)
    role = np.full(part.topology.ranks, -1, np.int64)
    role[places.ravel()] = 0
    done = runs.run(one.scenario, stage, [script], role, "block")
    rank = done.slowest
    first = int(np.searchsorted(done.traced.graph.rank, rank))
    cuts = [(int(done.result.start_ns[first + mark]), int(done.result.end_ns[first + mark])) for mark in marks]
    spans = [exposed(done.traced, done.result, rank, *span) for span in ((0, cuts[0][0]), (cuts[0][1], cuts[1][0]), (cuts[1][1], None))]
    waits = "tp" if one.work.tp > 1 else "cp"  # within a block ranks wait for those of their own group
    for terms in spans:
        terms[waits] += terms.pop("bubble")
        terms["bubble"] = 0.0
    weights = 0.0 if one.degree("schedule") != ZERO_BUBBLE else one.work.weight_gradient
    return LayerTimes(spans[0], spans[1], weights, float(sum(spans[2].values()))), done


def _layer_script(one: Priced1, stage: runs.Stage) -> tuple[Script, list[int]]:
    """The program of a rank: forward, backward, the gather of a boundary; a moment between them, which no transfer crosses."""
    script, marks = Script(stage.style), []
    after = forward(script, one.work, ())
    after = script.compute(after, 1e-9, "between", "host")
    marks.append(after[0])
    after = backward(script, one.work, after)
    after = script.compute(after, 1e-9, "between", "host")
    marks.append(after[0])
    if one.degree("pp") > 1:
        LayerPasses(one.work).regather(script, after)
    return script, marks


def block_stage(one: Priced1, part: Cluster, places: Ints) -> runs.Stage:
    """The groups of one block: tensor parallel along the last axis of ``places`` ``(cp, tp)``, the rings along the first."""
    rings = places.T
    ranks = part.topology.ranks
    peers = {"cp next": runs.neighbours(rings, ranks, 1), "cp previous": runs.neighbours(rings, ranks, -1)}
    return runs.stage_on(one.scenario, part, {"tp": places}, peers)


def measured_layer(one: Priced1, times: LayerTimes) -> Layer:
    """The closed forms' layer with the passes that the engine measured; what shows of data-parallel traffic follows from them."""

    def column(value: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([value])

    ahead, back, old = times.seconds("forward"), times.seconds("backward"), one.layer
    share = one.scenario.software.dp_overlap
    gather = old.gathers if one.degree("zero") >= 3 else np.zeros(1)
    if one.scenario.software.reduce_each_micro_batch and one.degree("zero") >= 3:
        gather = gather - _scatter(one)
    dp_forward = np.maximum(0.0, gather - share * ahead)
    return replace(
        old,
        compute=column(times.forward["compute"] + times.backward["compute"]),
        tp=column(times.forward["tp"] + times.backward["tp"]),
        cp=column(times.forward["cp"] + times.backward["cp"]),
        forward=column(ahead),
        backward=column(back),
        dp=dp_forward + np.maximum(0.0, old.gathers - share * back),
        dp_forward=dp_forward,
    )


def _scatter(one: Priced1) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    ahead, during = layer_gathers(one.scenario, one.layout, one.groups)
    return during - ahead


def check_failed_links(cluster: Cluster) -> None:
    """Refuses failed links within blocks that lie on one dimension, where there is no way round them.

    Raises:
        ValueError: with the link, and what to use instead.
    """
    for fault in cluster.topology.faulty_links:
        for block in blocks_of(cluster, fault) if fault[2] == 0 else ():
            part, _ = cluster.part(cluster.rank[block])
            if len(part.topology.dimensions) == 1:
                raise ValueError(
                    f"hw.network.faulty_links has {list(fault)}: no way round a failed link lies within its tensor- and context-parallel "
                    "group, which this backend times alone; allowed: a factor above 0, or backend=full_astrasim_flattened"
                )


def faulty_blocks(cluster: Cluster) -> dict[tuple[int, int], None]:
    """The blocks, by their (pp, dp) index, whose own links have faults: both ends within one, along a dimension that it spans."""
    found: dict[tuple[int, int], None] = {}
    for fault in cluster.topology.faulty_links:
        found |= dict.fromkeys(blocks_of(cluster, fault))
    return found


def blocks_of(cluster: Cluster, fault: tuple[int, int, float]) -> list[tuple[int, int]]:
    """The blocks that a faulty link slows; none where it carries gradients or stages alone."""
    ends, axis = fault_ends(cluster.topology, fault)
    inside = [{(int(p), int(d)) for p, d, _, _ in np.argwhere(cluster.rank == end)} for end in ends]
    spanned = [block for block in set.intersection(*inside) if len(np.unique(cluster.coordinates(cluster.rank[block])[axis])) > 1]
    return sorted(spanned)
