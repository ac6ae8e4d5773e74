"""A transformer layer on the event engine: what its passes take on the links of its own tensor- and context-parallel group."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rapid_dse.network.cluster import Cluster
from rapid_dse.simulate import runs
from rapid_dse.simulate.exposed import exposed
from rapid_dse.simulate.quantities import Priced1
from rapid_dse.simulate.training import Layer
from rapid_dse.trace.block import backward, forward
from rapid_dse.trace.graph import Ints
from rapid_dse.trace.script import Script


@dataclass(frozen=True)
class LayerTimes:
    """A layer's passes: seconds by term of forward and backward, on the rank that ends last."""

    forward: dict[str, float]
    backward: dict[str, float]

    def seconds(self, direction: str) -> float:
        """The whole pass, s."""
        return float(sum(getattr(self, direction).values()))


def run_layer(one: Priced1, cluster: Cluster) -> tuple[LayerTimes, runs.Run]:
    """Runs one layer's forward and backward pass on the first stage's first group.

    Raises:
        ValueError: what the engine cannot run.
    """
    block = cluster.rank[0, 0]
    part, places = cluster.part(block)
    stage = block_stage(one, part, places)
    script = Script(stage.style)
    ahead = forward(script, one.work, ())
    # a moment between the passes, which no transfer crosses
    middle = script.compute(ahead, 1e-9, "loss")
    backward(script, one.work, middle)
    role = np.full(part.topology.ranks, -1, np.int64)
    role[places.ravel()] = 0
    done = runs.run(one.scenario, stage, [script], role, "block")
    rank = done.slowest
    row = int(np.searchsorted(done.traced.graph.rank, rank)) + middle[0]
    begin, end = int(done.result.start_ns[row]), int(done.result.end_ns[row])
    times = LayerTimes(exposed(done.traced, done.result, rank, 0, begin), exposed(done.traced, done.result, rank, end))
    return times, done


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
    shown = np.maximum(0.0, gather - share * ahead) + np.maximum(0.0, old.gathers - share * back)
    # waits within a block are for ranks of the same tensor- or context-parallel group
    waits = {term: times.forward["bubble"] + times.backward["bubble"] if term == ("tp" if one.work.tp > 1 else "cp") else 0.0
             for term in ("tp", "cp")}  # fmt: skip
    return replace(
        old,
        compute=column(times.forward["compute"] + times.backward["compute"]),
        tp=column(times.forward["tp"] + times.backward["tp"] + waits["tp"]),
        cp=column(times.forward["cp"] + times.backward["cp"] + waits["cp"]),
        forward=column(ahead),
        backward=column(back),
        dp=shown,
    )


def _scatter(one: Priced1) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    from rapid_dse.simulate.training import layer_gathers

    ahead, during = layer_gathers(one.scenario, one.layout, one.groups)
    return during - ahead
