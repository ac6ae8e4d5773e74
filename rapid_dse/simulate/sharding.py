"""What ZeRO and plain data parallelism transfer of weights and gradients: with each pass, and at the end of a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.cluster import Cluster
from rapid_dse.config.hardware import Network
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import Software
from rapid_dse.interconnect import transfer
from rapid_dse.interconnect.transfer import Transfer
from rapid_dse.model.architecture import architecture
from rapid_dse.parallel.layouts import IntColumn, Layouts
from rapid_dse.parallel.placement import Placement
from rapid_dse.parallel.span import Halves, Span
from rapid_dse.parallel.stages import Stages
from rapid_dse.simulate.communication import gradient_bytes
from rapid_dse.simulate.held_weights import (
    Weights,
    embedding_parameters,
    head_parameters,
    layer_weights,
    mean_of_stages,
    stage_weights,
)
from rapid_dse.simulate.memory import reduces_each
from rapid_dse.simulate.operator_times import compute_bytes
from rapid_dse.simulate.replicated import replicated_bytes
from rapid_dse.simulate.vocabulary import tied_table
from rapid_dse.simulate.zero_plus_plus import EIGHT_BITS, QuantizedReduction, innermost

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class ShardGroups:
    """Where the layouts' groups lie, and the network that they find."""

    placement: Placement
    network: Network
    cluster: Cluster


@dataclass(frozen=True)
class PassTransfers:
    """Transfers of one layer and one micro-batch during its forward and during its backward pass."""

    forward: Transfer
    backward: Transfer


@dataclass(frozen=True)
class ShardedLayers:
    """What ZeRO 2 and 3 transfer with each pass of a layer of each kind."""

    layers: tuple[PassTransfers, ...]


@dataclass(frozen=True)
class EndTransfers:
    """What the first stage transfers once a step, ``(n_layouts,)``: the reduction of those gradients that were not reduced with each
    micro-batch, ZeRO 1's and 2's gather of new weights, the sum of a ``tied`` table's gradient with the last stage, and that of weights
    which each rank of a tensor-parallel group holds whole (``replicated``). ``mean``: weights of the mean stage over those of the first,
    which holds a table.
    """

    gradients: Transfer
    weights: Transfer
    tied: Transfer
    replicated: Transfer
    mean: FloatColumn


def sharded_passes(scenario: Scenario, layouts: Layouts, groups: ShardGroups, weights: Weights, trained: Weights) -> PassTransfers:
    """ZeRO 3's gather of ``weights`` before a pass, and the reduction of the gradients of those that are ``trained`` after the backward
    pass where each micro-batch's are reduced."""
    software = scenario.software
    none = transfer.nothing(groups.network, len(layouts))
    if not layouts.sharding.gradients.any():
        return PassTransfers(none, none)
    gather = _by_group(weights.times(gathered_bytes(scenario)), groups).times(layouts.sharding.parameters)
    every_micro_batch = reduces_each(software, layouts)
    if not every_micro_batch.any():
        return PassTransfers(gather, none)
    if software.precision.zero_quantized_gradients:
        return PassTransfers(gather, quantized_reduction(scenario, trained.total, groups).both.times(every_micro_batch))
    sizes = trained.times(gradient_bytes(scenario))
    scatter = _by_group(sizes, groups)  # a gather reversed
    for copies in across_replicas(sizes, groups):
        scatter = scatter + copies
    return PassTransfers(gather, scatter.times(every_micro_batch))


def layer_gathers(scenario: Scenario, layouts: Layouts, groups: ShardGroups) -> tuple[PassTransfers, ...]:
    """Transfers of a layer of each kind in each pass: ZeRO 3's gathers of weights, and gradients reduced each time."""
    layer_parts = zip(*(layer_weights(scenario, layouts, trained) for trained in (False, True)), strict=True)
    every = [(sharded_passes(scenario, layouts, groups, *layer), layer[0]) for layer in layer_parts]
    return tuple(
        PassTransfers(gather.forward, backward_gather(scenario, layouts, groups, weights, gather.forward) + gather.backward)
        for gather, weights in every
    )


def backward_gather(scenario: Scenario, layouts: Layouts, groups: ShardGroups, weights: Weights, forward: Transfer) -> Transfer:
    """The gather of ``weights`` before a backward pass: as ``forward``, or among those that share a second copy of them; where experts
    are, they are weights like others (``_plus_plus_rules``)."""
    second = scenario.parallel.zero_hpz_partition_size
    if second == 1:
        return forward
    group = innermost(groups.placement.gradient, second)
    return transfer.all_gather(weights.total * gathered_bytes(scenario), group, groups.network).times(layouts.sharding.parameters)


def quantized_reduction(scenario: Scenario, parameters: FloatColumn, groups: ShardGroups) -> QuantizedReduction:
    """The reduction of so many parameters' gradients in 4 bits."""
    return QuantizedReduction.of(parameters, groups.placement.gradient, groups.network, scenario.hw.node_dimensions)


@dataclass(frozen=True)
class TableTransfers:
    """What ZeRO 2 and 3 move of the embedding table and of the head for each micro-batch: ``forward`` the gather of their weights, which
    the backward pass of the head still has and that of the look-up does not read, ``backward`` the reduction of their gradients.

    The head of a stage that has the tied table too is no other than it.
    """

    embedding: PassTransfers
    head: PassTransfers

    @property
    def sent(self) -> NDArray[np.float64]:
        """Bytes that a rank sends into each network dimension, on first and last stage together, ``(n_dimensions, n_layouts)``."""
        return self.embedding.forward.sent + self.embedding.backward.sent + self.head.forward.sent + self.head.backward.sent


def embedding_weights(scenario: Scenario, layouts: Layouts) -> Weights:
    """Parameters that a rank of the first stage looks up: of tokens, and of positions where they are learned."""
    learned = architecture(scenario.model).embedding.positions(scenario.workload.seq_len)
    return Weights(embedding_parameters(scenario, layouts) + learned)


def trained_table(scenario: Scenario, table: Weights) -> Weights:
    """What has gradients of an embedding table or a head: all or, where adapters alone are trained, nothing."""
    return table.times(float(scenario.workload.trains_all))


def table_passes(scenario: Scenario, layouts: Layouts, groups: ShardGroups) -> TableTransfers:
    """Those of each layout; nothing under ZeRO 0 and 1."""
    looked_up, table = embedding_weights(scenario, layouts), Weights(head_parameters(scenario, layouts))
    embedding = sharded_passes(scenario, layouts, groups, looked_up, trained_table(scenario, looked_up))
    apart = (layouts.pp > 1) | (not scenario.model.tie_word_embeddings)
    head = sharded_passes(scenario, layouts, groups, table, trained_table(scenario, table))
    return TableTransfers(embedding, PassTransfers(head.forward.times(apart), head.backward.times(apart)))


def _by_group(sizes: Weights, groups: ShardGroups) -> Transfer:
    """A gather of dense weights over the ranks that share their shards, and of the experts' over theirs; ``sizes`` in bytes."""
    gather = transfer.all_gather(sizes.dense, groups.placement.shard, groups.network)
    if sizes.experts is None:
        return gather
    return gather + transfer.all_gather(sizes.experts, groups.placement.expert_shard, groups.network)


def across_replicas(sizes: Weights, groups: ShardGroups) -> list[Transfer]:
    """The all-reduces that keep the copies of the shards equal under hybrid sharding: each rank's shard of ``sizes`` bytes of gradients,
    over the ranks that hold the same one; none without hybrid sharding."""
    placement = groups.placement
    return [
        all_reduce(size / halves.shard.size, halves.replica, groups)
        for size, halves in ((sizes.dense, placement.halves), (sizes.experts, placement.expert_halves))
        if halves is not None and size is not None
    ]


def all_reduce(size: FloatColumn, span: Span, groups: ShardGroups) -> Transfer:
    """One all-reduce of gradients, ``size`` bytes, as the cluster's jobs run it: by NCCL's choice, or around rings alone."""
    if groups.cluster.trees:
        reduce = transfer.all_reduce(size, span, groups.network)
    else:
        reduce = transfer.reduce_scatter(size, span, groups.network) + transfer.all_gather(size, span, groups.network)
    return reduce.waiting(groups.cluster.all_reduce_wait * (span.size - 1))


def gathered_bytes(scenario: Scenario) -> int:
    """Bytes of a weight that ZeRO 3 gathers."""
    if scenario.software.precision.zero_quantized_weights:
        return EIGHT_BITS
    return 1 if scenario.workload.precision == "fp8" and "all-gather" in scenario.software.precision.fp8_recipe else compute_bytes(scenario)


def end_transfers(scenario: Scenario, layouts: Layouts, stages: Stages, groups: ShardGroups) -> EndTransfers:
    """The first stage's transfers at the end of a step. It ends the step in every schedule here, so that its transfers cannot hide behind
    other stages' work."""
    weights = stage_weights(scenario, layouts, stages.alone("first"), trained=True).first_stage()
    unreduced = weights.times(~reduces_each(scenario.software, layouts))
    of_layers = mean_of_stages(scenario, layouts, [weights.total for weights in layer_weights(scenario, layouts, trained=True)])
    head = head_parameters(scenario, layouts) * (not scenario.model.tie_word_embeddings)
    tables = trained_table(scenario, Weights(embedding_parameters(scenario, layouts) + head)).dense / layouts.pp
    return EndTransfers(
        gradients=gradient_sync(scenario, layouts, unreduced.times(gradient_bytes(scenario)), groups),
        weights=weight_gather(scenario, layouts, weights, stages.layers[0], groups),
        tied=tied_table(scenario, layouts, groups.placement, groups.network).reduction,
        replicated=_sum_of_replicated(scenario, layouts, stages, groups),
        mean=(of_layers + tables) / np.maximum(1.0, weights.total),  # a first stage without layers may have no adapters
    )


def _sum_of_replicated(scenario: Scenario, layouts: Layouts, stages: Stages, groups: ShardGroups) -> Transfer:
    """The sum over tensor-parallel ranks of the gradients of the first stage's norms and their like."""
    if not layouts.sequence_parallel.any():
        return transfer.nothing(groups.network, len(layouts))
    size = replicated_bytes(scenario, layouts, stages.of_kinds[:, 0])
    return transfer.all_reduce(size, groups.placement.tp, groups.network).times(layouts.sequence_parallel)


def gradient_sync(scenario: Scenario, layouts: Layouts, sent: Weights, groups: ShardGroups) -> Transfer:
    """Reduction of ``sent`` bytes of gradients, bucket by bucket: all-reduce, or reduce-scatter where ZeRO shards what follows."""
    placement = groups.placement
    dense = group_sync(scenario, layouts, sent.dense, (placement.gradient, placement.halves), groups)
    if sent.experts is None:
        return dense
    return dense + group_sync(scenario, layouts, sent.experts, (placement.expert_gradient, placement.expert_halves), groups)


def group_sync(scenario: Scenario, layouts: Layouts, sent: FloatColumn, group: tuple[Span, Halves | None], groups: ShardGroups) -> Transfer:
    """The reduction of ``sent`` bytes over one group; 0 bytes take no time.

    Under hybrid sharding (``Halves``) the gradients are scattered within the group that shares the shards, and each shard is then summed
    over its replicas.
    """
    calls = np.maximum(1.0, np.ceil(sent / bucket(scenario, layouts)))
    span, halves = group
    if scenario.software.precision.zero_quantized_gradients:
        reduction = quantized_reduction(scenario, sent / gradient_bytes(scenario) / calls, groups)
        return reduction.both.times(np.where(sent > 0, calls, 0.0))
    many, shards = np.where(sent > 0, calls, 0.0), layouts.sharding.optimizer
    if not shards.any():
        return all_reduce(sent / calls, span, groups).times(many)
    scatter = transfer.reduce_scatter(sent / calls, span if halves is None else halves.shard, groups.network)
    if halves is not None:
        scatter = scatter + all_reduce(sent / calls / halves.shard.size, halves.replica, groups)
    return (scatter if shards.all() else transfer.either(shards, scatter, all_reduce(sent / calls, span, groups))).times(many)


def reduction_overlap(software: Software, layouts: Layouts) -> FloatColumn:
    """Share of the last backward pass that the reduction of gradients may hide behind, ``(n_layouts,)``."""
    overlap, sharding = software.overlap, layouts.sharding
    scatter, reduce = (overlap.dp_overlap if own is None else own for own in (overlap.scatter_overlap, overlap.all_reduce_overlap))
    overlap_share: FloatColumn = np.where(sharding.optimizer_alone, scatter, np.where(sharding.optimizer, overlap.dp_overlap, reduce))
    return overlap_share


def bucket(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Bytes of gradients that one call reduces."""
    software = scenario.software
    size: FloatColumn = np.maximum(software.overlap.gradient_bucket, software.overlap.gradient_bucket_per_rank * (layouts.dp * layouts.cp))
    return size


def weight_gather(scenario: Scenario, layouts: Layouts, weights: Weights, layers: IntColumn, groups: ShardGroups) -> Transfer:
    """Gather of the weights that each rank of ZeRO 1 or 2 has updated."""
    calls = np.maximum(1.0, layers * scenario.software.overlap.gather_calls_per_layer)
    gather = _by_group(weights.times(compute_bytes(scenario) / calls), groups)
    return gather.times(np.where(layouts.sharding.gathers_once, calls, 0.0))
