"""What the stages of one layout's graphs are made of: the seconds and bytes that the closed forms price, as plain numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.events.host_slots import host_slot
from rapid_dse.events.layer_quantities import seconds_alone
from rapid_dse.events.layout_detail import LayoutDetail, PassSeconds
from rapid_dse.events.programs.stage_work import FourBits, SharedWeights, StageWork
from rapid_dse.interconnect.closed_form import with_closed_form
from rapid_dse.model.architecture import architecture_of, split_of
from rapid_dse.parallel.span import Halves
from rapid_dse.simulate.communication import gradient_bytes
from rapid_dse.simulate.end_of_step import update_seconds
from rapid_dse.simulate.held_weights import Weights, embedding_parameters, head_parameters, layer_weights, looked_up_twice, weights_of
from rapid_dse.simulate.memory import reduces_each
from rapid_dse.simulate.operator_times import compute_bytes
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
from rapid_dse.simulate.vocabulary import tied_table
from rapid_dse.simulate.zero_plus_plus import FOUR_BITS, by_node

FloatColumn = NDArray[np.float64]

GRADIENTS, EXPERT_GRADIENTS = "gradients", "expert gradients"  # groups that share dense weights, and experts
SECOND, NODES = "second copy", "gradients in a node"  # ZeRO++: ranks that share a second copy of weights; those of a node
REPLICAS = " of replicas"  # after a group's name: the ranks that hold the same shard, where each of several groups has all shards


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
    slot = host_slot(one, kinds, stage, passes)
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
