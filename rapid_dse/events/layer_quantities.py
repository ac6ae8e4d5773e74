"""One layer of one layout as its programs take it: seconds and bytes of each half, of each kind of layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.events.programs.layer_program import Exchange, ExpertRoute, Half, HalfAgain, LayerWork
from rapid_dse.interconnect import transfer
from rapid_dse.interconnect.transfer import Transfer
from rapid_dse.model.architecture import LayerKind, architecture_of
from rapid_dse.model.recompute import Recomputation, selective
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.arrangement import Arrangement
from rapid_dse.simulate.communication import LayerTransfers, SideTransfer, Streams, TensorParallel, node_wait, side_transfers
from rapid_dse.simulate.expert_traffic import gathers_tokens
from rapid_dse.simulate.layer import beside_compute, hidden_exchanges
from rapid_dse.simulate.layer_work import LayerBlock
from rapid_dse.simulate.recomputed import Repeated, repeated
from rapid_dse.simulate.sharding import ShardGroups
from rapid_dse.simulate.slots import share_of
from rapid_dse.simulate.training import Prepared
from rapid_dse.simulate.ulysses import traded_bytes

SIDES = "tp side "  # groups of ranks along one side of a grid that share products: how many, and how far apart in a tensor-parallel group


def layer_works(
    scenario: Scenario,
    layout: Layouts,
    blocks: Sequence[LayerBlock],
    placed: tuple[ShardGroups, Arrangement],
    priced: tuple[Prepared, int],
) -> tuple[LayerWork, ...]:
    """A layer of each kind.

    Args:
        placed: where the layout's groups lie, and what they transfer.
        priced: its operators, and which of their shapes is its own.
    """
    (groups, arranged), (ready, shape) = placed, priced
    streams, transfers = Streams.of(scenario, layout, groups.placement, groups.network), arranged.transfers
    works = []
    repeats = repeated(scenario, layout)
    for number, (kind, some) in enumerate(zip(architecture_of(scenario).kinds, selective(scenario), strict=True)):
        alone, block, traffic = ready.alone.layers[number], blocks[number], transfers.layers[number]
        regathered = float(repeats[number].gathered_again[0])
        parts = [tuple(replace(exchange_of(streams, layer), regathered=regathered) for layer in part) for part in streams.around(kind)]
        sides = tuple(side_exchange(side, way) for way in (0, 1) for side in side_transfers(streams, kind, way == 1))
        around = sum(parts[:-1], ()), (*parts[-1], *sides)  # what stands before attention counts as its
        halves = _halves(block, around, alone.matmul_seconds[..., shape], alone.mixing)
        halves = halves[0], replace(halves[1], route=_route(streams, block, traffic, repeats[number]))
        again = _again(block, halves, repeats[number], some, (alone.again * alone.matmul_seconds[0])[:, shape], alone.mixing)
        work = _layer_work(scenario, layout, block, traffic, (again, exchange_of(streams, transfers.stream), repeats[number]))
        works.append(replace(work, trades=_trades(streams, kind)))
    return tuple(works)


def _layer_work(
    scenario: Scenario,
    layout: Layouts,
    block: LayerBlock,
    transfers: LayerTransfers,
    parts: tuple[tuple[tuple[Half, Half], float], Exchange, Repeated],
) -> LayerWork:
    """One layer of one kind; ``parts``: its halves with the seconds that run again beside them, what is exchanged of the activations
    between layers, and what recomputation repeats."""
    (halves, again), stream, repeats = parts
    software = scenario.software
    tp, cp, sequence = int(layout.tp[0]), int(layout.cp[0]), bool(layout.sequence_parallel[0])
    hops = cp - 1 if scenario.cp_kind == "ring" else 0
    return LayerWork(
        halves=halves,
        again=again,
        again_attention=float(repeats.core[0]),
        full=float(repeats.whole[0]) == 1,
        tp=tp,
        sequence_parallel=sequence and tp > 1,
        ring=hops,
        keys=float(transfers.cp_keys[0]) if hops else 0.0,
        hop=float(transfers.cp_hop.seconds[0]) if hops else 0.0,
        stream=stream,
        tp_hidden=software.overlap.tp_overlap if software.overlap.async_tp else 0.0,
        tp_backward_hidden=software.overlap.tp_backward_overlap * float(not layout.delays_weights[0]),
        cp_hidden=software.overlap.cp_overlap,
    )


def _trades(streams: Streams, kind: LayerKind) -> tuple[tuple[float, float], ...]:
    """Bytes and seconds of each all-to-all around a layer's attention kernel; none without them."""
    scenario, layouts, placement = streams.scenario, streams.layouts, streams.placement
    sizes = traded_bytes(scenario, layouts, kind.attention(MicroBatch.of(layouts, scenario.workload))) if layouts.cp[0] > 1 else ()
    return tuple((float(size[0]), seconds_alone(transfer.all_to_all(size, placement.cp, streams.network))) for size in sizes)


def _again(
    block: LayerBlock, halves: tuple[Half, Half], repeats: Repeated, some: Recomputation, products: NDArray[np.float64], mixing: int
) -> tuple[tuple[Half, Half], float]:
    """The halves with what runs again of each, and seconds that run again beside them; nothing where the whole forward pass does.

    Args:
        some: what selective recomputation repeats; ``products``: seconds of products that it repeats, the first ``mixing`` attention's.
    """
    whole, partly = float(repeats.whole[0]), float(repeats.partly[0])
    selected = partly * (float(block.selective[0]) - some.core * float(block.attention_forward[0]))
    if whole == 1 or (whole == 0 and not some.exchanges) or whole == partly == 0:
        return halves, selected * (whole < 1)
    first = float(products[:mixing].sum() / products.sum()) if products.sum() > 0 else 0.0
    marked = []
    for number, half in enumerate(halves):
        seconds = whole * (half.forward - half.spared) + selected * (1 - first if number else first)
        # attention and the MLP come last; a layer of one part has no attention
        shares = (
            whole + partly * (collective[number - 2] if len(collective) + number > 1 else 0.0)
            for collective in (some.gathers, some.scatters)
        )
        routed = (whole + partly * exchange for exchange in (some.dispatched, some.combined))
        marked.append(replace(half, again=HalfAgain(seconds, *shares, *routed)))
    return (marked[0], marked[1]), 0.0


def exchange_of(streams: Streams, collective: TensorParallel) -> Exchange:
    """One buffer of a layout's as its programs exchange it."""
    group = getattr(streams.placement, collective.group)
    return Exchange(
        float(collective.size[0]),
        float(collective.gathered[0]),
        gather=seconds_alone(collective.gather),
        scatter=seconds_alone(collective.scatter),
        reduce=seconds_alone(collective.reduce),
        again=seconds_alone(collective.again),
        scattered=bool(collective.scattered(streams.layouts.sequence_parallel)[0]),
        group=collective.group,
        skew=float(np.ravel(node_wait(streams.scenario, group))[0]),
    )


def side_exchange(side: SideTransfer, way: int) -> Exchange:
    """A collective along one side of a grid of ranks, in a forward (0) or backward (1) pass."""
    seconds, ranks, stride = seconds_alone(side.transfer), int(side.ranks[0]), int(side.stride[0])
    size = float(side.size[0]) * (ranks > 1)
    return Exchange(size, size, seconds, seconds, seconds, 0.0, group=f"{SIDES}{ranks}/{stride}", only=(way, side.kind))


def _halves(block: LayerBlock, around: Sequence[tuple[Exchange, ...]], products: NDArray[np.float64], mixing: int) -> tuple[Half, Half]:
    """Attention's and the MLP's seconds; elementwise work and casts are shared out in proportion to the products' ``(3, n_matmuls)``, of
    which the first ``mixing`` are attention's."""
    first = share_of(products[:, :mixing].sum(axis=1), products.sum(axis=1))
    attention_forward, attention_backward = float(block.attention_forward[0]), float(block.attention_backward[0])
    weight = float(block.weight_gradient[0])
    forward = float(block.forward[0]) - attention_forward
    backward = float(block.backward[0]) - attention_backward - weight

    def half(number: int, share: NDArray[np.float64]) -> Half:
        seconds = forward * float(share[0]), backward * float(share[1]), weight * float(share[2])
        return Half(("attention", "mlp")[number], *seconds, around[number])

    copied = float(block.gather_copies[0])
    mine = copied * float(first[0])
    attention = replace(half(0, first), attention_forward=attention_forward, attention_backward=attention_backward, spared=mine)
    return attention, replace(half(1, 1 - first), spared=float(block.spared[0]) + copied - mine)


def _route(streams: Streams, block: LayerBlock, transfers: LayerTransfers, repeats: Repeated) -> ExpertRoute | None:
    """What goes to other ranks' experts and back; what hides behind another micro-batch's passes is dealt out to both of them."""
    if transfers.route is None:
        return None
    route, way, copies = transfers.route, seconds_alone(transfers.ep_exchange), transfers.route.copies
    alone = beside_compute(streams.scenario, streams.layouts, block, transfers, repeats)
    hidden = hidden_exchanges(streams.scenario, streams.layouts, block, transfers, repeats, alone)
    spans = [float(np.ravel(members)[0]) for members in streams.placement.ep.members]
    return ExpertRoute(
        size=float(route.size[0]),
        seconds=way,
        kinds=("ALL_GATHER", "REDUCE_SCATTER") if gathers_tokens(streams.scenario) else ("ALL_TO_ALL", "ALL_TO_ALL"),
        parts=() if copies is None else tuple(float(route.size[0] * c[0]) for c, n in zip(copies, spans, strict=True) if n > 1),
        exposed_share=float(hidden.exposed_share[0]),
        ways_beside=(float(hidden.forward[0]) / max(way, 1e-300), float(hidden.backward[0]) / max(way, 1e-300)),
        late=float(hidden.late[0]),
    )


def seconds_alone(one: Transfer) -> float:
    """How long a transfer of the only layout takes alone."""
    return float(np.ravel(one.seconds)[0])
