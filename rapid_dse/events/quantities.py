"""What one layout's graphs are made of: the seconds and bytes that the closed forms price, as plain numbers.

``seconds`` of transfers are the closed form's; where the network has none (mesh, torus, faulty links) they are those of switches in
its place, and serve only to tell how long the host has, never to time a transfer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.events.layer_quantities import layer_works, seconds_alone
from rapid_dse.events.machine import AXES, Machine, cluster_of
from rapid_dse.events.programs.end_programs import EndWork
from rapid_dse.events.programs.layer_program import Exchange, Half, LayerWork
from rapid_dse.events.programs.stage_work import FourBits, SharedWeights, StageWork
from rapid_dse.interconnect.closed_form import with_closed_form
from rapid_dse.model.architecture import architecture_of, split_of
from rapid_dse.parallel import schedules
from rapid_dse.parallel.expert_groups import ExpertGroups, expert_groups
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.parallel.schedules.schedule import Schedule
from rapid_dse.parallel.span import Halves
from rapid_dse.simulate.arrangement import Arrangement, arrangement, groups_of
from rapid_dse.simulate.communication import effective_network, gradient_bytes
from rapid_dse.simulate.end_of_step import update_seconds
from rapid_dse.simulate.held_weights import Weights, embedding_parameters, head_parameters, layer_weights, looked_up_twice, weights_of
from rapid_dse.simulate.host_launches import micro_batch_seconds
from rapid_dse.simulate.layer import Layers, layer_time, slowed_block
from rapid_dse.simulate.layer_work import Block, LayerBlock, framework_block
from rapid_dse.simulate.memory import reduces_each
from rapid_dse.simulate.operator_times import compute_bytes
from rapid_dse.simulate.replicated import replicated_bytes
from rapid_dse.simulate.shard_copies import with_copies
from rapid_dse.simulate.sharding import (
    ShardGroups,
    backward_gather,
    bucket,
    embedding_weights,
    gathered_bytes,
    gradient_sync,
    quantized_reduction,
    reduction_overlap,
    sharded_passes,
    trained_table,
    weight_gather,
)
from rapid_dse.simulate.slots import host_layer_seconds, smoothed, waits_of_passes
from rapid_dse.simulate.training import Prepared, price_operators
from rapid_dse.simulate.vocabulary import LOSS_REDUCTIONS, loss_bytes, tied_table
from rapid_dse.simulate.zero_plus_plus import FOUR_BITS, by_node

FloatColumn = NDArray[np.float64]

GRADIENTS, EXPERT_GRADIENTS = "gradients", "expert gradients"  # groups that share dense weights, and experts
SECOND, NODES = "second copy", "gradients in a node"  # ZeRO++: ranks that share a second copy of weights; those of a node
REPLICAS = " of replicas"  # after a group's name: the ranks that hold the same shard, where each of several groups has all shards


@dataclass(frozen=True)
class LayoutDetail:
    """One layout with all that is known of it before any graph runs; columns have one row. ``works``: a layer of each kind."""

    scenario: Scenario
    layout: Layouts
    ready: Prepared
    block: Block
    groups: ShardGroups
    arranged: Arrangement
    layers: Layers
    works: tuple[LayerWork, ...]
    around: EndWork

    def degree(self, name: str) -> int:
        """A column's only value."""
        return int(getattr(self.layout, name)[0])

    @property
    def schedule(self) -> Schedule:
        """Its pipeline schedule."""
        return schedules.SCHEDULE_CLASSES[self.degree("schedule")]

    def _degrees(self) -> dict[str, int]:
        return {name: self.degree(name) for name in (*AXES, "ep")} | {"etp": self.degree("expert_tp")}

    def cluster(self) -> Machine:
        """Where its ranks stand."""
        return cluster_of(self._degrees(), self.scenario.parallel.order, effective_network(self.scenario))

    @property
    def experts(self) -> ExpertGroups:
        """Which of a stage's ranks exchange tokens, and which hold the same experts."""
        return expert_groups(self._degrees(), self.scenario.parallel.order, self.scenario.hw.network)


def operators_of(scenario: Scenario, layouts: Layouts) -> tuple[Prepared, Block]:
    """The operators of all layouts, priced together; the block has a row a layout.

    Raises:
        ValueError: where the chip lacks the precision, or the model is none that can be priced.
    """
    ready = price_operators(scenario, layouts)
    block = framework_block(scenario, ready.shape, ready.alone, ready.device).take(ready.where)
    return ready, with_copies(scenario, layouts, block, ready.device)


def one_layout(scenario: Scenario, layouts: Layouts, row: int, ready: Prepared, block: Block) -> LayoutDetail:
    """All about the layout at ``row``."""
    layout, own = layouts.take(slice(row, row + 1)), block.take(np.array([row]))
    assumed = with_closed_form(scenario)
    groups, arranged = groups_of(assumed, layout), arrangement(assumed, layout)
    layers = layer_time(assumed, layout, own, arranged)
    works = layer_works(scenario, layout, slowed(scenario, layout, own, layers), (groups, arranged), (ready, int(ready.where[row])))
    works = tuple(
        replace(work, copies_forward=float(layer.copies_forward[0]), copies_backward=float(layer.copies_backward[0]))
        for work, layer in zip(works, layers.of_kinds, strict=True)
    )
    around = _end_work(scenario, layout, own, arranged, works[0])
    return LayoutDetail(scenario, layout, ready, own, groups, arranged, layers, works, around)


def slowed(scenario: Scenario, layout: Layouts, block: Block, layers: Layers) -> list[LayerBlock]:
    """Layers of each kind with what the transfers that they hide make them take longer."""
    return [slowed_block(scenario, layout, own, layer) for own, layer in zip(block.layers, layers.of_kinds, strict=True)]


def _end_work(scenario: Scenario, layout: Layouts, block: Block, arranged: Arrangement, work: LayerWork) -> EndWork:
    """Embedding, head and loss."""
    weight, trained = float(block.head_weight_gradient[0]), scenario.workload.trains_all
    stream = work.stream if trained else replace(work.stream, again=0.0)
    around = (stream,) if architecture_of(scenario).shares_ends else ()
    read = tuple(end.times(1 + architecture_of(scenario).predictions) for end in around)
    head = Half("head", float(block.head_forward[0]), float(block.head_backward[0]) - weight, weight, read)
    loss = Exchange(
        float(loss_bytes(scenario, layout)[0]), 0.0, 0.0, 0.0, seconds_alone(arranged.vocabulary.loss), 0.0, skew=work.stream.skew
    )
    size = float(replicated_bytes(scenario, layout, arranged.stages.of_kinds[:, 0])[0])  # the first stage's, which ends the step
    whole = Exchange(size, 0.0, 0.0, 0.0, seconds_alone(arranged.end.replicated), 0.0)
    return EndWork(
        embedding=float(block.embedding[0]),
        looked_up=Half("look-up", 0.0, 0.0, 0.0, around),
        head=head,
        loss=Half("loss", 0.0, 0.0, 0.0, (loss,)),
        reductions=LOSS_REDUCTIONS,
        replicated=Half("replicated", 0.0, 0.0, 0.0, (whole,)),
        hidden=scenario.software.overlap.tp_backward_overlap,
        trained=trained,
    )


@dataclass(frozen=True)
class PassSeconds:
    """Seconds of the passes that stages are made of, transfers and all: of a layer of each kind (``layers``, forward and backward), of all
    of the embedding's, of the head's."""

    layers: tuple[tuple[float, float], ...]
    embedding: float
    head: float

    def backward(self, kinds: Sequence[int]) -> float:
        """Of the backward passes of layers of such kinds."""
        return sum(self.layers[kind][1] for kind in kinds)


def closed_form_passes(one: LayoutDetail) -> PassSeconds:
    """As closed forms have them."""
    around = one.layers.ends.added_to(one.block)
    layers = tuple((float(layer.forward[0]), float(layer.backward[0])) for layer in one.layers.of_kinds)
    ends = around.embedding + around.embedding_backward, around.head_forward + around.head_backward
    return PassSeconds(layers, *(float(np.ravel(end)[0]) for end in ends))


def stage_works(one: LayoutDetail, passes: PassSeconds) -> list[StageWork]:
    """What each stage does beside its passes, first to last; ``passes`` tell what the host has to wait out."""
    pp, chunks_a_stage = one.degree("pp"), one.degree("chunks") if one.degree("pp") > 1 else 1
    chunks = split_of(one.scenario).kinds_of_chunks(pp, chunks_a_stage, one.schedule.stage_map)
    return [_stage_work(one, stage, tuple(chunks[stage]), passes) for stage in range(pp)]


def _stage_work(one: LayoutDetail, stage: int, chunks: tuple[tuple[int, ...], ...], passes: PassSeconds) -> StageWork:
    scenario, layout, groups = with_closed_form(one.scenario), one.layout, one.groups
    software, kinds = scenario.software, [kind for chunk in chunks for kind in chunk]
    weights = _trained_weights(one, stage, kinds)
    every_micro_batch = bool(reduces_each(software, layout)[0])
    scatters, ranks = bool(layout.sharding.optimizer[0]), one.degree("dp") * one.degree("cp")
    unreduced = weights.times(0.0 if every_micro_batch else gradient_bytes(scenario))
    copies = ranks // int(layout.shards[0]) if scatters else ranks  # ranks that sum the same gradients in an all-reduce
    alike = one.degree("expert_copies")  # ranks that hold the same experts
    of_experts = alike // one.degree("expert_shards") if scatters else alike
    others = copies - 1 + (0 if weights.experts is None else of_experts - 1)
    sent = np.ravel(unreduced.total)
    calls, hidden = int(np.ceil(sent / bucket(scenario, layout))[0]), float(reduction_overlap(software, layout)[0])
    tied = tied_table(scenario, layout, groups.placement, groups.network)
    head, apart = stage == one.degree("head_stage"), one.degree("head_stage") > 0 or not scenario.model.tie_word_embeddings
    table = Weights(head_parameters(scenario, layout))
    whole, trained = (layer_weights(scenario, layout, only) for only in (False, True))
    slot = _host_slot(one, kinds, stage, passes)
    return StageWork(
        chunks=chunks,
        sizes=tuple(float(np.ravel(layer.total)[0]) for layer in trained),
        stalls=slot.stalls(one),
        launches=slot.launches(one, chunks),
        host_step=software.host.host_step,
        optimizer=float(np.ravel(update_seconds(scenario, layout, weights, one.ready.device))[0]),
        scatters=scatters,
        shared=_shared(one, weights, unreduced, len(kinds)),
        layers=tuple(_shared_layer(one, *weights_of_layer) for weights_of_layer in zip(whole, trained, strict=True)),
        calls=max(1, calls),
        embedding=_table(one, embedding_weights(scenario, layout)) if stage == 0 else None,
        head=_table(one, table) if head and apart else None,
        tied=float(tied.size[0]) if stage == 0 or head else 0.0,
        tied_reduce=seconds_alone(tied.reduction),
        dp_hidden=hidden,
        gather_hidden=software.overlap.parameter_gather_overlap,
        wait=max(0.0, calls * groups.cluster.all_reduce_wait * others - hidden * passes.backward(kinds)),
        tree=groups.cluster.trees,
    )


@dataclass(frozen=True)
class _Group:
    """Ranks that share weights, by name: those that share one copy of the shards (``alone``), and with those that hold the same shard
    (``cut``); ``of``: which of ``Weights``."""

    name: str
    of: str
    halves: Halves | None
    alone: ShardGroups
    cut: ShardGroups

    def part(self, weights: Weights) -> Weights | None:
        """What the group shares of some weights, as if they were all there are; None where it shares nothing."""
        of_group = getattr(weights, self.of)
        return None if of_group is None else Weights(np.atleast_1d(of_group))


def _groups(one: LayoutDetail) -> Iterator[_Group]:
    placement = one.groups.placement
    groups = (
        (GRADIENTS, "dense", placement.gradient, placement.halves),
        (EXPERT_GRADIENTS, "experts", placement.expert_gradient, placement.expert_halves),
    )
    for name, of, span, halves in groups:
        if float(np.ravel(span.size)[0]) == 1:
            continue
        shard = span if halves is None else halves.shard
        alone = replace(one.groups, placement=replace(placement, gradient=shard, halves=None))
        yield _Group(name, of, halves, alone, replace(one.groups, placement=replace(placement, gradient=span, halves=halves)))


def _shared(one: LayoutDetail, weights: Weights, reduced: Weights, layers: int) -> tuple[SharedWeights, ...]:
    """What moves once a step of a stage's ``weights`` in each group that shares some; ``reduced`` bytes of gradients are reduced then."""
    scenario, layout = with_closed_form(one.scenario), one.layout
    shared = []
    for group in _groups(one):
        own_weights, sent = group.part(weights), group.part(reduced)
        if own_weights is None or sent is None:
            continue
        sync = gradient_sync(scenario, layout, sent, group.alone).seconds
        transfers = {
            "sent": sent.dense,
            "sync": sync,
            "gathered": own_weights.dense * compute_bytes(scenario) * one.layout.sharding.gathers_once,
            "gather": weight_gather(scenario, layout, own_weights, np.array([layers]), group.alone).seconds,
            "shards": group.alone.placement.gradient.size,
            "across": gradient_sync(scenario, layout, sent, group.cut).seconds - sync,
        }
        shared.append(_shared_weights(group.name, group.halves, transfers, narrow_gradients(one)))
    return tuple(shared)


def _shared_layer(one: LayoutDetail, weights: Weights, trained: Weights) -> tuple[SharedWeights, ...]:
    """What moves of a layer's ``weights``, of which some are ``trained``, with each of its passes in each group that shares some."""
    groups = ((group, group.part(weights), group.part(trained)) for group in _groups(one))
    return tuple(
        replace(
            _shared_weights(group.name, group.halves, _each_time(one, (own_weights, own), group.alone, group.cut), narrow_gradients(one)),
            second=SECOND if one.scenario.parallel.zero_hpz_partition_size > 1 else "",
        )
        for group, own_weights, own in groups
        if own_weights is not None and own is not None
    )


def narrow_gradients(one: LayoutDetail) -> FourBits | None:
    """How gradients go in 4 bits, where they do."""
    if not one.scenario.software.precision.zero_quantized_gradients:
        return None
    scenario, group = with_closed_form(one.scenario), one.groups.placement.gradient
    reduction = quantized_reduction(scenario, np.array([1e9]), one.groups)
    share = seconds_alone(reduction.within) / max(seconds_alone(reduction.both), 1e-300)
    members = float(np.ravel(by_node(group, scenario.hw.node_dimensions)[0].size)[0])
    return FourBits(NODES, NODES + REPLICAS, members, share, FOUR_BITS / gradient_bytes(scenario))


def _shared_weights(
    name: str, halves: Halves | None, transfers: Mapping[str, FloatColumn], narrow: FourBits | None = None
) -> SharedWeights:
    """Those of a group by its name; ``transfers``: fields of ``SharedWeights``, columns of one row."""
    numbers: dict[str, Any] = {key: float(np.ravel(column)[0]) for key, column in transfers.items()}
    return SharedWeights(name, **numbers, replicas="" if halves is None else name + REPLICAS, narrow=narrow)


def _each_time(one: LayoutDetail, weights: tuple[Weights, Weights], alone: ShardGroups, cut: ShardGroups) -> dict[str, FloatColumn]:
    """What moves of some dense weights with each pass, as fields of ``SharedWeights``.

    Args:
        weights: all, and those that are trained.
        alone: the group that shares one copy of the shards; ``cut``: with those that hold the same shard.
    """
    scenario, layout, (whole, trained) = with_closed_form(one.scenario), one.layout, weights
    passes = sharded_passes(scenario, layout, alone, whole, trained)
    across = sharded_passes(scenario, layout, cut, whole, trained).backward.seconds - passes.backward.seconds
    return {
        "layer_gathered": whole.dense * gathered_bytes(scenario) * layout.sharding.parameters,
        "layer_gather": passes.forward.seconds,
        "layer_again": backward_gather(scenario, layout, alone, whole, passes.forward).seconds,
        "layer_scattered": trained.dense * gradient_bytes(scenario) * reduces_each(scenario.software, layout),
        "layer_scatter": passes.backward.seconds,
        "shards": alone.placement.gradient.size,
        "layer_across": across,
    }


def _table(one: LayoutDetail, weights: Weights) -> SharedWeights | None:
    """What moves of embedding table or head with each pass; None where ZeRO does not shard what passes read or give."""
    placement = one.groups.placement
    if not one.layout.sharding.gradients[0] or float(np.ravel(placement.gradient.size)[0]) == 1:
        return None
    alone = replace(one.groups, placement=replace(placement, gradient=placement.shard, halves=None))
    transfers = _each_time(one, (weights, trained_table(one.scenario, weights)), alone, one.groups)
    return _shared_weights(GRADIENTS, placement.halves, transfers, narrow_gradients(one))


def _trained_weights(one: LayoutDetail, stage: int, kinds: Sequence[int]) -> Weights:
    """Parameters with gradients that a rank of a stage holds, whose layers are of such kinds."""
    scenario, layout, last = one.scenario, one.layout, one.degree("head_stage")
    layers = layer_weights(scenario, layout, trained=True)
    weights = weights_of(np.bincount(np.array(kinds, np.int64), minlength=len(layers)), layers)
    if not scenario.workload.trains_all:
        return weights
    looks_up = stage == 0 or (stage == last and looked_up_twice(scenario))
    tables = float(embedding_parameters(scenario, layout)[0]) * looks_up
    if stage == last and not (stage == 0 and scenario.model.tie_word_embeddings):
        tables += float(head_parameters(scenario, layout)[0])
    positions = architecture_of(scenario).embedding.positions(scenario.workload.seq_len) * (stage == 0)
    return Weights(weights.dense + tables + positions, weights.experts)


@dataclass(frozen=True)
class _HostSlot:
    """Seconds of a micro-batch on a stage: of all on the device, ahead of the backward pass, of its weight gradients; of its launches."""

    device: float
    ahead: float
    gradients: float
    host: float

    def stalls(self, one: LayoutDetail) -> tuple[float, float, float]:
        """What the device waits for launches after its forward, its backward and its weights' pass: the closed forms' slot, with the waits
        that they have in each pass."""
        software = one.scenario.software
        return waits_of_passes(software, (self.ahead, self.gradients), self.device, self.host, one.schedule.directions_apart)

    def launches(self, one: LayoutDetail, chunks: Sequence[Sequence[int]]) -> tuple[tuple[float, float], ...]:
        """``StageWork.launches``, as ``uneven`` has them."""
        if not one.schedule.splits_backward or self.host <= 0:
            return ()
        late, longer = smoothed(one.scenario.software, np.array(self.device), np.array(self.host))
        layer, micro_batch = float(host_layer_seconds(one.scenario, one.layout)[0]), micro_batch_seconds(one.scenario)
        thirds = [(len(kinds) * layer + micro_batch / len(chunks)) / 3 for kinds in chunks]
        return tuple((third * float(longer), 3 * third * float(late) / self.host) for third in thirds)


def _host_slot(one: LayoutDetail, kinds: Sequence[int], stage: int, passes: PassSeconds) -> _HostSlot:
    """That of a stage whose layers are of such kinds."""
    software, pp, last = one.scenario.software, one.degree("pp"), one.degree("head_stage")
    tables = one.layers.tables
    embedding, head = passes.embedding + float(tables.embedding[0]), passes.head + float(tables.head[0])
    around = embedding * (stage == 0) + head * (stage == last)
    chunks = one.degree("chunks")
    sends = float(one.schedule.stage_map.sends(np.array(stage), np.array(pp), np.array(chunks)))
    hops = sends * seconds_alone(one.arranged.transfers.pp_hop) + 2.0 * chunks * software.pipeline.send_receive if pp > 1 else 0.0
    layers = sum(sum(passes.layers[kind]) + float(one.layers.of_kinds[kind].dp[0]) for kind in kinds)
    device = layers + around + hops
    host = len(kinds) * float(host_layer_seconds(one.scenario, one.layout)[0]) + micro_batch_seconds(one.scenario)
    ahead = sum(passes.layers[kind][0] + float(one.layers.of_kinds[kind].dp_forward[0]) for kind in kinds)
    ends = one.layers.ends.added_to(one.block)
    ahead += float(np.ravel(ends.embedding + tables.embedding_forward)[0]) * (stage == 0)
    ahead += float(np.ravel(ends.head_forward + tables.head_forward)[0]) * (stage == last)
    gradients = sum(one.works[kind].weight_gradient for kind in kinds)
    return _HostSlot(device, ahead + hops / 2, gradients, host)
