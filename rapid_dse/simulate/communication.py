"""What each parallelism's traffic costs a layer, a micro-batch and a step, before anything hides it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.remembered import remembered
from rapid_dse.config.cluster import Cluster
from rapid_dse.config.hardware import NARROW_BYTES, PRECISION_BYTES, Hardware, Network
from rapid_dse.config.scenario import Scenario
from rapid_dse.interconnect import transfer
from rapid_dse.interconnect.fabric import met, told
from rapid_dse.interconnect.transfer import Transfer
from rapid_dse.model.architecture import LayerKind, architecture_of
from rapid_dse.model.layers.part import Exchanged
from rapid_dse.model.recompute import Recomputation, selective
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.layouts import USUAL_ETP, WHOLE_GROUP, BoolColumn, IntColumn, Layouts
from rapid_dse.parallel.placement import Placement, place, side_of
from rapid_dse.parallel.span import Span
from rapid_dse.simulate.casts import cast_before_gather
from rapid_dse.simulate.expert_traffic import Route, expert_exchange, route, shared_rows
from rapid_dse.simulate.operator_times import compute_bytes
from rapid_dse.simulate.ulysses import traded_bytes

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class LayerTransfers:
    """The transfers of one layer of one kind and one micro-batch.

    ``tp_selective``: what selective recomputation repeats of ``tp_forward``. ``tp_gather_again``: sequence parallelism's second gather of a
    layer's inputs, for the weight gradient. ``cp_hop`` is one of ring attention's ``cp − 1`` hops forward, ``cp_keys`` bytes
    ``(n_layouts,)``; backward there are twice as many. ``cp_trade`` are all-to-alls in their place, of each pass. ``ep_exchange`` is one
    of the two exchanges of each pass, to the experts or back; ``route`` is what it carries, None where tokens stay.
    """

    tp_forward: Transfer
    tp_selective: Transfer
    tp_backward: Transfer
    tp_gather_again: Transfer
    cp_hop: Transfer
    cp_keys: FloatColumn
    cp_trade: Transfer
    ep_exchange: Transfer
    route: Route | None


@dataclass(frozen=True)
class MicroBatchTransfers:
    """The transfers of a table's layouts, before anything hides them.

    ``layers``: of a layer of each kind; ``pp_hop`` is one send to the next stage. ``stream``: tensor parallelism's collectives on the
    activations between layers, in 16 bits also where layers gather fp8.
    """

    layers: tuple[LayerTransfers, ...]
    pp_hop: Transfer
    stream: TensorParallel


@remembered(16)
def cluster_of(scenario: Scenario) -> Cluster:
    """The cluster with what follows from its measured bus bandwidths."""
    return told(scenario.cluster, scenario.hw.network, scenario.hw.node_dimensions)


@remembered(16)
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
    return place(_degrees(layouts), scenario.parallel.order, scenario.hw.network)


def _degrees(layouts: Layouts) -> dict[str, IntColumn]:
    degrees = {name: getattr(layouts, name) for name in ("tp", "cp", "ep", "dp", "pp")}
    if (layouts.etp != USUAL_ETP).any() or (layouts.expert_tp != layouts.tp).any():
        degrees["etp"] = layouts.expert_tp
    if (layouts.shard_group != WHOLE_GROUP).any():
        degrees["shards"] = layouts.shards
    return degrees


@dataclass(frozen=True)
class TensorParallel:
    """One collective of each kind over a tensor-parallel group, whose whole buffer has ``size`` bytes where it is scattered or reduced and
    ``gathered`` bytes where it is gathered, ``(n_layouts,)``.

    ``again``: of the gather that the backward pass repeats for the weight gradient, nothing where what was gathered is kept. ``routed``:
    not None where the ranks are those that share an expert.
    """

    size: FloatColumn
    gathered: FloatColumn
    gather: Transfer
    scatter: Transfer
    reduce: Transfer
    again: Transfer
    gathers: BoolColumn | None = None
    routed: BoolColumn | None = None

    @property
    def group(self) -> str:
        """The ranks among which it goes."""
        return "tp" if self.routed is None else "etp"

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
    return MicroBatch.of(layouts, scenario.workload).tokens * (scenario.model.hidden_size * compute_bytes(scenario))


def gathered_stream(scenario: Scenario, layouts: Layouts) -> FloatColumn | None:
    """Bytes of a gather of the activations (or of their gradients) that a layer's products read, where sequence parallelism gathers them
    in fp8; None where it gathers them as they are."""
    narrow = scenario.narrow
    if narrow is None or not cast_before_gather(scenario):
        return None
    return stream_bytes(scenario, layouts) * np.where(layouts.sequence_parallel, NARROW_BYTES[narrow] / compute_bytes(scenario), 1.0)


@dataclass(frozen=True)
class Streams:
    """Tensor parallelism's collectives on activations, from which those around each part follow.

    ``stream``: on the activations between layers as they are; ``cast``: where layers may gather them in fp8.
    """

    scenario: Scenario
    layouts: Layouts
    placement: Placement
    network: Network
    stream: TensorParallel
    cast: TensorParallel

    @classmethod
    def of(cls, scenario: Scenario, layouts: Layouts, placement: Placement, network: Network) -> Streams:
        """Those of a table's layouts."""
        size, gathered = stream_bytes(scenario, layouts), gathered_stream(scenario, layouts)
        stream = tensor_parallel(scenario, size, placement.tp, network)
        cast = stream if gathered is None else tensor_parallel(scenario, size, placement.tp, network, gathered)
        return cls(scenario, layouts, placement, network, stream, cast)

    def around(self, kind: LayerKind) -> tuple[tuple[TensorParallel, ...], ...]:
        """What tensor parallelism exchanges around each part of a layer.

        Under sequence parallelism a gather before and a scatter after, else one reduction after. Under fp8 what is gathered for a dense
        layer's products is cast before; what is scattered stays in 16 bits, since it is summed.
        """
        return tuple(tuple(self._collectives(exchanged) for exchanged in part.exchanged()) for part in kind.parts)

    def _collectives(self, exchanged: Exchanged) -> TensorParallel:
        layouts, stream = self.layouts, self.cast if exchanged.cast else self.stream
        none = transfer.nothing(self.network, len(layouts))
        if exchanged.low_rank or exchanged.alone:
            return self._of_adapter(exchanged)
        if exchanged.routed:
            rows = np.where(layouts.gathers_rows, shared_rows(self.scenario, layouts), stream.size)
            stream = tensor_parallel(self.scenario, rows, self.placement.etp, self.network)
            stream = replace(stream, gathers=layouts.gathers_rows, routed=np.ones(len(layouts), bool))
        elif not exchanged.reduced:
            size, gathered = (np.where(layouts.sequence_parallel, buffer, 0.0) for buffer in (stream.size, stream.gathered))
            stream = replace(stream, size=size, gathered=gathered, reduce=none)
        return stream if exchanged.again else replace(stream, again=none)

    def _of_adapter(self, exchanged: Exchanged) -> TensorParallel:
        """What an adapter's first product gives, which the ranks that share it reduce; or its second one, whose columns they gather."""
        layouts, placement = self.layouts, self.placement
        tokens = shared_rows(self.scenario, layouts) if exchanged.routed else self.stream.size
        size = tokens if exchanged.alone else tokens * (exchanged.low_rank / self.scenario.model.hidden_size)
        reduced = tensor_parallel(self.scenario, size, placement.etp if exchanged.routed else placement.tp, self.network)
        none = transfer.nothing(self.network, len(layouts))
        every = np.ones(len(layouts), bool)
        routed = every if exchanged.routed else None
        if exchanged.alone:
            return replace(reduced, size=np.zeros(len(layouts)), scatter=none, again=none, gathers=every, routed=routed)
        return replace(reduced, again=none, gathers=~every, routed=routed)


def micro_batch_transfers(scenario: Scenario, layouts: Layouts, placement: Placement, network: Network) -> MicroBatchTransfers:
    """The transfers of a micro-batch."""
    streams = Streams.of(scenario, layouts, placement, network)
    # Each tensor-parallel rank sends its share; without sequence parallelism the node gathers it again (arXiv 2104.04473, section 4.1).
    boundary = transfer.send_to_next(streams.stream.size / layouts.tp, placement.pp, network)
    regather = streams.cast.gather.times(~layouts.sequence_parallel & (layouts.pp > 1))
    kinds = zip(architecture_of(scenario).kinds, selective(scenario), strict=True)
    layers = tuple(_layer_transfers(streams, kind, some) for kind, some in kinds)
    return MicroBatchTransfers(layers, boundary + regather, streams.stream)


def _layer_transfers(streams: Streams, kind: LayerKind, some: Recomputation) -> LayerTransfers:
    """The transfers of one layer of a kind; ``some``: what selective recomputation repeats of it."""
    scenario, layouts, placement, network = streams.scenario, streams.layouts, streams.placement, streams.network
    sequence, width = layouts.sequence_parallel, compute_bytes(scenario)
    parts = streams.around(kind)
    every = [exchanged for around in parts for exchanged in around]
    nowhere = transfer.nothing(network, len(layouts))
    around = (transfer.either(exchange.scattered(sequence), exchange.gather + exchange.scatter, exchange.reduce) for exchange in every)
    each_way = transfer.sum_of(around) if every else nowhere
    again = transfer.sum_of(exchange.again for exchange in every) if every else nowhere
    ahead, back = (each_way + sum_of_moves(streams, kind, way) for way in (False, True))
    shape, none = MicroBatch.of(layouts, scenario.workload), nowhere
    trades = traded_bytes(scenario, layouts, kind.attention(shape))
    ring = None if trades else kind.ring(shape)
    keys = np.zeros(len(layouts)) if ring is None else width * ring
    expert_way = route(scenario, layouts, placement.ep) if kind.copies else None
    return LayerTransfers(
        tp_forward=ahead,
        tp_selective=_repeated(streams, parts, some),
        tp_backward=back,
        tp_gather_again=again.times(sequence),
        cp_hop=none if ring is None else transfer.pass_round(keys, placement.cp, network),
        cp_keys=keys,
        cp_trade=transfer.sum_of([none, *(transfer.all_to_all(trade, placement.cp, network) for trade in trades)]),
        ep_exchange=none if expert_way is None else expert_exchange(scenario, expert_way, placement.ep, network),
        route=expert_way,
    )


@dataclass(frozen=True)
class SideTransfer:
    """A collective along one side of a grid of ranks that share products: its kind by its name in graphs, bytes of its whole buffer and how
    many ranks of a tensor-parallel group take part, how far apart, ``(n_layouts,)`` each."""

    kind: str
    size: FloatColumn
    ranks: IntColumn
    stride: IntColumn
    transfer: Transfer


def side_transfers(streams: Streams, kind: LayerKind, backward: bool) -> list[SideTransfer]:
    """What ranks of a grid exchange in one pass of a layer, in order."""
    scenario, layouts, network = streams.scenario, streams.layouts, streams.network
    run = {"ALL_GATHER": transfer.all_gather, "REDUCE_SCATTER": transfer.reduce_scatter, "ALL_REDUCE": transfer.all_reduce}
    sides = []
    for move in kind.moves(MicroBatch.of(layouts, scenario.workload)):
        if move.backward == backward:
            span = side_of(_degrees(layouts), scenario.parallel.order, scenario.hw.network, move.ranks, move.stride)
            size = move.elements * float(compute_bytes(scenario))
            transfer_of_move = run[move.kind](size, span, network).waiting(node_wait(scenario, span)).times((move.ranks > 1) * move.times)
            sides.append(SideTransfer(move.kind, size * move.times, move.ranks, move.stride, transfer_of_move))
    return sides


def sum_of_moves(streams: Streams, kind: LayerKind, backward: bool) -> Transfer:
    """All of them, one after the other."""
    sides = side_transfers(streams, kind, backward)
    return transfer.sum_of(side.transfer for side in sides) if sides else transfer.nothing(streams.network, len(streams.layouts))


def _repeated(streams: Streams, parts: Sequence[Sequence[TensorParallel]], some: Recomputation) -> Transfer:
    """What selective recomputation repeats of a layer's exchanges within a tensor-parallel group; ``parts``: those around each part."""
    sequence, repeated_transfers = streams.layouts.sequence_parallel, transfer.nothing(streams.network, len(streams.layouts))
    for around, gathers, scatters in zip(parts, some.gathers, some.scatters, strict=True):
        for exchanged in around if gathers or scatters else ():
            scattered = exchanged.gather.times(gathers) + exchanged.scatter.times(scatters)
            repeated_transfers = repeated_transfers + transfer.either(
                exchanged.scattered(sequence), scattered, exchanged.reduce.times(scatters)
            )
    return repeated_transfers


def gradient_bytes(scenario: Scenario) -> int:
    """Bytes of one gradient on the wire."""
    return int(PRECISION_BYTES[scenario.software.precision.reduce_dtype or scenario.software.precision.gradient_dtype])
