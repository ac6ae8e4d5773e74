"""From a layout to the programs of its stages, and from a run of them to the terms of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from rapid_dse.events import runs
from rapid_dse.events.attribution import exposed
from rapid_dse.events.layer_quantities import SIDES
from rapid_dse.events.layout_detail import LayoutDetail
from rapid_dse.events.machine import Machine
from rapid_dse.events.programs.script import MAIN, Script, Style, check_size
from rapid_dse.events.programs.stage_program import FIRST_INPUT, TIED, LayerNodes, StageWriter
from rapid_dse.events.programs.stage_work import Boundary, StageWork
from rapid_dse.events.quantities import EXPERT_GRADIENTS, GRADIENTS, NODES, REPLICAS, SECOND, narrow_gradients
from rapid_dse.parallel.expert_groups import ExpertGroups
from rapid_dse.parallel.layouts import WHOLE_GROUP
from rapid_dse.parallel.schedules.schedule import tasks
from rapid_dse.simulate.account import result_columns
from rapid_dse.simulate.held_weights import mean_of_stages
from rapid_dse.simulate.results import TIME_TERMS, Priced
from rapid_dse.simulate.step import StepTimes
from rapid_dse.trace.graph import Ints


def stage_script(one: LayoutDetail, style: Style, stage: int, work: StageWork, passes: LayerNodes) -> Script:
    """The program of a rank of one stage."""
    pp = one.degree("pp")
    micro_batches = int(one.layout.num_micro_batches[0])
    check_size(2 * micro_batches * len(work.chunks) * pp, "to write")  # each pass of each stage is a node or more
    order = one.schedule.order(stage, pp, len(work.chunks), micro_batches)
    script = Script(style)
    StageWriter(script, work, passes, boundary_of(one), stage, pp, one.schedule.stage_map).write(tasks(order))
    return script


def boundary_of(one: LayoutDetail) -> Boundary:
    """What a stage sends to the next: each tensor-parallel rank its share of the activations."""
    software = one.scenario.software
    overlaps = one.schedule.overlaps_sends and software.overlap.pp_overlap > 0
    rank = one.works[0]
    regather = rank.stream.gather if rank.tp > 1 and not rank.sequence_parallel and one.degree("pp") > 1 else 0.0
    host = software.pipeline.send_receive * (1 - software.overlap.pp_overlap if overlaps else 1.0)
    return Boundary(rank.stream.size / rank.tp, float(one.arranged.transfers.pp_hop.seconds[0]) - regather, host, overlaps)


def directory(
    places: Ints, experts: ExpertGroups, shards: int | None = None, sides: Sequence[str] = ()
) -> tuple[dict[str, Ints], dict[str, Ints]]:
    """Groups and peers of ranks that stand at ``places`` ``(pp, dp, cp, tp)``: of gradients, of tp and ep, rings of cp, pipelines
    and their two ends.

    ``shards``: ranks of dp · cp that share one copy of what ZeRO shards, which cuts the groups of gradients; None: all of them.
    ``sides``: groups along sides of a grid of tensor-parallel ranks, by their names (``SIDES``).
    """
    pp, dp, cp, tp = places.shape
    ranks = int(places.max()) + 1
    gradients = places.transpose(0, 3, 1, 2).reshape(pp * tp, dp * cp)
    rings, pipes = places.transpose(0, 1, 3, 2).reshape(-1, cp), places.reshape(pp, -1).T
    peers: dict[str, Ints] = {}
    for name, lines in (("cp", rings), ("", pipes)):
        for way, shift in (("next", 1), ("previous", -1)):
            peers[f"{name} {way}".strip()] = runs.neighbours(lines, ranks, shift)
    exchanging, alike, sharing = experts.first_rails(tp).tables(places)
    groups = {"tp": places.reshape(-1, tp), "cp": rings, "ep": exchanging, "etp": sharing}
    groups |= {name: _side(places.reshape(-1, tp), name) for name in sides}
    for name, whole in ((GRADIENTS, gradients), (EXPERT_GRADIENTS, alike)):
        groups |= {name: whole} if shards is None else _cut(name, whole, max(1, shards * whole.shape[1] // (dp * cp)))
    if pp > 1:
        groups[TIED] = pipes[:, [0, -1]]
    return groups, peers


def _side(groups: Ints, name: str) -> Ints:
    """Groups of so many ranks of each tensor-parallel group, so far apart in it."""
    ranks, stride = map(int, name.removeprefix(SIDES).split("/"))
    ranks_of_side: Ints = groups.reshape(len(groups), -1, ranks, stride).transpose(0, 1, 3, 2).reshape(-1, ranks)
    return ranks_of_side


def _cut(name: str, groups: Ints, shards: int) -> dict[str, Ints]:
    """Groups cut into their innermost ``shards`` ranks, which share one copy, and the ranks that hold the same shard."""
    inner = np.sort(groups, axis=1).reshape(len(groups), -1, shards)
    return {name: inner.reshape(-1, shards), name + REPLICAS: inner.transpose(0, 2, 1).reshape(-1, inner.shape[1])}


def _of_plus_plus(one: LayoutDetail, gradients: Ints) -> dict[str, Ints]:
    """Parts of the groups of gradients that ZeRO++ has: those with a second copy of weights, and those of a node."""
    second, narrow = one.scenario.parallel.zero_hpz_partition_size, narrow_gradients(one)
    groups = {SECOND: _cut(SECOND, gradients, second)[SECOND]} if second > 1 else {}
    return groups if narrow is None else groups | _cut(NODES, gradients, round(narrow.members))


def stage_for(one: LayoutDetail, cluster: Machine, places: Ints, experts: ExpertGroups) -> runs.Stage:
    """The network with all groups of the ranks at ``places`` ``(pp, dp, cp, tp)``."""
    whole = places.shape[1] == one.degree("dp")  # part of the replicas reduces nothing
    cut = one.degree("shard_group") != WHOLE_GROUP and whole
    exchanges = [exchange for work in one.works for half in work.halves for exchange in half.exchanges]
    sides = sorted(
        {exchange.group for exchange in exchanges if exchange.only is not None and exchange.size > 0}
        if places.shape[3] == one.degree("tp")
        else ()
    )
    groups, peers = directory(places, experts, int(one.layout.shards[0]) if cut else None, sides)
    groups |= _of_plus_plus(one, groups[GRADIENTS]) if whole and not cut else {}
    room = cluster.topology.ranks
    padded = {name: np.concatenate([peer, np.full(room - len(peer), -1, np.int64)]) for name, peer in peers.items()}
    return runs.stage_on(one.scenario, cluster, groups, padded)


def priced(one: LayoutDetail, done: runs.Run) -> Priced:
    """The result columns of a run of the whole step."""
    opened, arrived = _first_waits(done) if one.schedule.runs_on else (np.zeros(1, np.int64), np.zeros(1, np.int64))
    finish = done.result.finish_ns
    rank = int((finish - (arrived - opened)).argmax())
    begin, resumed = (int(np.broadcast_to(sent, finish.shape)[rank]) for sent in (opened, arrived))
    spans = [exposed(done.traced, done.result, rank, 0, begin)] if begin else []
    spans.append(exposed(done.traced, done.result, rank, resumed))
    step = step_of({term: sum(span[term] for span in spans) for term in TIME_TERMS})
    if one.scenario.backend.network in ("ideal", "congestion_unaware"):
        step = _within_ports(one, step)
    return result_columns(one.scenario, one.layout, one.block, one.arranged, step)


def _first_waits(done: runs.Run) -> tuple[Ints, Ints]:
    """When each rank is ready for its first micro-batch, and when that arrives, ns, ``(ranks,)`` each; both 0 where it waits for none.

    A stage that runs on into its next step as soon as it has ended one waits for that no longer than for what else comes late: what lies
    between the two is no part of its step.
    """
    graph, result = done.traced.graph, done.result
    opened, arrived = np.zeros(graph.ranks, np.int64), np.zeros(graph.ranks, np.int64)
    if FIRST_INPUT not in done.traced.labels.names:
        return opened, arrived
    for row in np.flatnonzero(done.traced.label == done.traced.labels.names.index(FIRST_INPUT)).tolist():
        rank = int(graph.rank[row])
        before = np.arange(int(np.searchsorted(graph.rank, rank)), row)
        own = before[graph.stream[before] == MAIN]
        opened[rank] = result.end_ns[own].max(initial=0)
        arrived[rank] = max(int(result.end_ns[row]), int(opened[rank]))
    return opened, arrived


def _within_ports(one: LayoutDetail, step: StepTimes) -> StepTimes:
    """The step, no shorter than the mean GPU's port of any network dimension is busy.

    Links on which nothing contends let transfers overlap that share a port. What does not fit into the step then shows: it belongs to
    gradients and gathers, and to sends between stages, in proportion to their seconds on that port; nothing else hides behind them.
    """
    layout, arranged, layers = one.layout, one.arranged, one.layers.of_kinds
    micro_batches, pp = layout.num_micro_batches, layout.pp
    sharded, transfers = (
        micro_batches * mean_of_stages(one.scenario, layout, [half.forward.busy + half.backward.busy for half in passes])
        for passes in (arranged.sharded, [layer.sent for layer in layers])
    )
    data = sharded
    data = data + arranged.end.mean * (arranged.end.gradients.busy + arranged.end.weights.busy)
    sends = micro_batches * (2.0 * layout.crossings / pp) * arranged.transfers.pp_hop.busy
    busy = transfers + data + sends
    port = busy.argmax(axis=0)[None]
    longest, of_data, of_sends = (np.take_along_axis(seconds, port, 0)[0] for seconds in (busy, data, sends))
    late = np.maximum(0.0, longest - step.total)
    share = of_data / np.where(late > 0, of_data + of_sends, 1.0)
    return replace(step, dp=step.dp + share * late, pp=step.pp + (1 - share) * late)


def step_of(terms: Mapping[str, float]) -> StepTimes:
    """The step whose exposed times are ``terms``."""
    return StepTimes(**{term: np.array([terms[term]]) for term in TIME_TERMS})
