"""What each parallelism's traffic costs a layer, a micro-batch and a step, before anything hides it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.cluster import Cluster
from rapid_dse.config.hardware import PRECISION_BYTES, Hardware, Network
from rapid_dse.config.scenario import Scenario
from rapid_dse.interconnect import transfer
from rapid_dse.interconnect.fabric import met, told
from rapid_dse.interconnect.transfer import Transfer
from rapid_dse.model.operators import local_kv_heads
from rapid_dse.parallel.layouts import USUAL_ETP, WHOLE_GROUP, BoolColumn, Layouts
from rapid_dse.parallel.placement import Placement, place
from rapid_dse.parallel.span import Span
from rapid_dse.simulate.operator_times import compute_bytes

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Traffic:
    """The transfers of a table's layouts, before anything hides them.

    ``tp_forward``, ``tp_backward`` and ``tp_gather_again`` (sequence parallelism's second gather of a layer's inputs, for the weight
    gradient) are of one layer and micro-batch. ``cp_hop`` is one of ring attention's ``cp − 1`` hops forward, ``cp_keys`` bytes
    ``(n_layouts,)``; backward there are twice as many. ``ep_exchange`` is one of the two all-to-alls of each pass, to the experts or
    back; ``pp_hop`` is one send to the next stage. ``stream``: tensor parallelism's collectives on the activations between layers, in
    16 bits also where layers gather fp8.
    """

    tp_forward: Transfer
    tp_backward: Transfer
    tp_gather_again: Transfer
    cp_hop: Transfer
    cp_keys: FloatColumn
    ep_exchange: Transfer
    pp_hop: Transfer
    stream: TensorParallel


def cluster_of(scenario: Scenario) -> Cluster:
    """The cluster with what follows from its measured bus bandwidths."""
    return told(scenario.cluster, scenario.hw.network, scenario.hw.node_dimensions)


def effective_network(scenario: Scenario) -> Network:
    """The network as jobs on the cluster meet it: beyond the node its share of the bandwidth and its latency apply."""
    return met(scenario.hw.network, scenario.hw.node_dimensions, cluster_of(scenario))


def nodes_of(hw: Hardware, layouts: Layouts) -> FloatColumn:
    """The nodes that each layout's GPUs are, a part of one included, ``(n_layouts,)``; 1 where the whole machine is one node."""
    if hw.node_dimensions == len(hw.network.dimensions):
        return np.ones(len(layouts))
    return np.asarray(layouts.num_gpus / hw.gpus_per_node)


def placement_of(scenario: Scenario, layouts: Layouts) -> Placement:
    """Where each layout's groups lie on the network."""
    degrees = {name: getattr(layouts, name) for name in ("tp", "cp", "ep", "dp", "pp")}
    if (layouts.etp != USUAL_ETP).any() or (layouts.expert_tp != layouts.tp).any():
        degrees["etp"] = layouts.expert_tp
    if (layouts.shard_group != WHOLE_GROUP).any():
        degrees["shards"] = layouts.shards
    return place(degrees, scenario.parallel.order, scenario.hw.network)


@dataclass(frozen=True)
class TensorParallel:
    """One collective of each kind over a tensor-parallel group, whose whole buffer has ``size`` bytes where it is scattered or reduced and
    ``gathered`` bytes where it is gathered, ``(n_layouts,)``.

    ``again``: of the gather that the backward pass repeats for the weight gradient, nothing where what was gathered is kept.
    """

    size: FloatColumn
    gathered: FloatColumn
    gather: Transfer
    scatter: Transfer
    reduce: Transfer
    again: Transfer
    gathers: BoolColumn | None = None

    def scattered(self, sequence_parallel: BoolColumn) -> BoolColumn:
        """Whether the buffer is gathered before and scattered after, ``(n_layouts,)``, or reduced after: as sequence parallelism has it,
        or as ``gathers`` says."""
        return sequence_parallel if self.gathers is None else self.gathers


def tensor_parallel(
    scenario: Scenario, size: FloatColumn, group: Span, network: Network, gathered: FloatColumn | None = None
) -> TensorParallel:
    """The collectives on ``size`` bytes over the group of ranks that share a layer's products, with the wait for ranks on other nodes;
    ``gathered``: bytes of a gather, where they are others."""
    skew = node_wait(scenario, group)
    scatter = transfer.all_gather(size, group, network).waiting(skew)  # a scatter is a gather reversed
    gather = scatter if gathered is None else transfer.all_gather(gathered, group, network).waiting(skew)
    reduce = transfer.all_reduce(size, group, network).waiting(skew)
    return TensorParallel(size, size if gathered is None else gathered, gather, scatter, reduce, gather)


def node_wait(scenario: Scenario, group: Span) -> FloatColumn:
    """Seconds that a collective of ranks which share products waits for those on other nodes, ``(n_layouts,)``."""
    return scenario.cluster.node_skew * (group.parts(scenario.hw.node_dimensions) - 1)


def stream_bytes(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Bytes of a micro-batch's activations between layers, of a whole tensor-parallel group, ``(n_layouts,)``."""
    tokens = layouts.micro_batch_size * (scenario.workload.seq_len / layouts.cp)
    return tokens * (scenario.model.hidden_size * compute_bytes(scenario))


# Recipes whose scale of a tensor is known before it is gathered: it is cast first and travels in 8 bits (Transformer Engine's linear
# layers, torchao's Float8ColwiseParallel). Scales of rows are not: torchao gathers those in 16 bits.
CAST_BEFORE_GATHER = ("delayed", "tensorwise", "tensorwise + fp8 all-gather")


def gathered_stream(scenario: Scenario, layouts: Layouts) -> FloatColumn | None:
    """Bytes of a gather of the activations (or of their gradients) that a layer's products read, where sequence parallelism gathers them
    in fp8; None where it gathers them as they are."""
    if scenario.workload.precision != "fp8" or scenario.software.precision.fp8_recipe not in CAST_BEFORE_GATHER:
        return None
    return stream_bytes(scenario, layouts) * np.where(layouts.sequence_parallel, 1.0 / compute_bytes(scenario), 1.0)


def exchanged(scenario: Scenario, layouts: Layouts, placement: Placement, network: Network) -> tuple[tuple[TensorParallel, ...], ...]:
    """What tensor parallelism exchanges around attention, and around the MLP.

    Under sequence parallelism a gather before and a scatter after, else one reduction after. The routed rows of a mixture of experts
    are gathered when they have arrived from other ranks, and scattered before they go back, beside what the shared experts exchange
    (Megatron Core's all-to-all dispatcher, which keeps what it has gathered), over the ranks that share an expert; without sequence
    parallelism partial sums travel back, and one reduction ends the layer. Under fp8 what is gathered for a dense layer's products is cast
    before; what is scattered stays in 16 bits, since it is summed, and so do routed rows, which are gathered before they are sorted and
    cast.
    """
    stream = tensor_parallel(scenario, stream_bytes(scenario, layouts), placement.tp, network, gathered_stream(scenario, layouts))
    model = scenario.model
    if not model.num_experts:
        return (stream,), (stream,)
    sequence = layouts.sequence_parallel
    rows = np.where(layouts.gathers_rows, routed_bytes(scenario, layouts) * layouts.expert_tp, stream.size)
    none = transfer.nothing(network, len(layouts))
    routed = replace(tensor_parallel(scenario, rows, placement.etp, network), again=none, gathers=layouts.gathers_rows)
    if not model.n_shared_experts:
        return (stream,), (routed,)
    return (stream,), (
        routed,
        replace(stream, size=np.where(sequence, stream.size, 0.0), gathered=np.where(sequence, stream.gathered, 0.0), reduce=none),
    )


def traffic(scenario: Scenario, layouts: Layouts, placement: Placement, network: Network) -> Traffic:
    """The transfers of one layer and one micro-batch."""
    model, sequence = scenario.model, layouts.sequence_parallel
    tokens = layouts.micro_batch_size * (scenario.workload.seq_len / layouts.cp)
    width, stream = compute_bytes(scenario), stream_bytes(scenario, layouts)
    halves = exchanged(scenario, layouts, placement, network)
    every = [each for half in halves for each in half]
    each_way = transfer.sum_of(transfer.either(each.scattered(sequence), each.gather + each.scatter, each.reduce) for each in every)
    again = transfer.sum_of(each.again for each in every)
    keys = tokens * local_kv_heads(model, layouts.tp) * model.attention_head_dim * (2 * width)
    # Each tensor-parallel rank sends its share; without sequence parallelism the node gathers it again (arXiv 2104.04473, section 4.1).
    boundary = transfer.send_to_next(stream / layouts.tp, placement.pp, network)
    regather = halves[0][0].gather.times(~sequence & (layouts.pp > 1))
    none = transfer.nothing(network, len(layouts))
    return Traffic(
        tp_forward=each_way,
        tp_backward=each_way,
        tp_gather_again=again.times(sequence),
        cp_hop=transfer.pass_round(keys, placement.cp, network),
        cp_keys=keys,
        ep_exchange=transfer.all_to_all(routed_bytes(scenario, layouts), placement.ep, network) if model.num_experts else none,
        pp_hop=boundary + regather,
        stream=halves[0][0] if halves[0][0].gathered is halves[0][0].size else tensor_parallel(scenario, stream, placement.tp, network),
    )


def routed_bytes(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Bytes of each all-to-all on a rank, its own experts' included, ``(n_layouts,)``: each token once for each of its experts.

    The tokens are the rank's share of them under sequence parallelism, else all of its tensor-parallel group's.
    """
    tokens = stream_bytes(scenario, layouts) / np.where(layouts.sequence_parallel, layouts.tp, 1)
    return tokens * scenario.model.num_experts_per_tok


def gradient_bytes(scenario: Scenario) -> int:
    """Bytes of one gradient on the wire."""
    return int(PRECISION_BYTES[scenario.software.precision.reduce_dtype or scenario.software.precision.gradient_dtype])
