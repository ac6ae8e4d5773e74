"""One layer of one micro-batch in closed form: its compute time, and the part of each transfer that is not hidden."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import rows_of, summed
from rapid_dse.config.scenario import Scenario
from rapid_dse.cost.overlap import Window, exposed, exposed_beside
from rapid_dse.interconnect import transfer
from rapid_dse.model.architecture import architecture_of
from rapid_dse.parallel.layouts import RECOMPUTE_FULL, Layouts
from rapid_dse.parallel.stages import Stages
from rapid_dse.simulate.arrangement import MICRO_BATCH, Arrangement
from rapid_dse.simulate.communication import LayerTransfers
from rapid_dse.simulate.expert_traffic import alone_share, held_sms
from rapid_dse.simulate.layer_work import Block, LayerBlock
from rapid_dse.simulate.offload import HostCopies, host_copies
from rapid_dse.simulate.recomputed import Repeated, recomputed, repeated
from rapid_dse.simulate.sharding import PassTransfers
from rapid_dse.simulate.vocabulary import Ends, exposed_ends

FloatColumn = NDArray[np.float64]


LAYER = (*MICRO_BATCH, "recompute", "sharded_passes", "delays_weights")  # columns of Layouts on which a layer depends
PAIRED = ("pairs_passes", "chunks", "num_micro_batches")  # of a mixture of experts


def layer_columns(scenario: Scenario) -> tuple[str, ...]:
    """Columns of ``Layouts`` on which a layer's time depends: where its weights are fetched from the host, what ZeRO leaves of them too;
    of a mixture of experts, whether passes run in pairs, and how many of them where exchanges hide behind another micro-batch's."""
    offloads, routes = scenario.parallel.offload_weights > 0, scenario.model.num_experts > 0
    paired = PAIRED if routes and scenario.software.experts.expert_overlap else PAIRED[:1] if routes else ()
    return (*LAYER, *(["zero"] if offloads else []), *paired)


@dataclass(frozen=True)
class Layer:
    """Exposed seconds of one layer of one kind and one micro-batch, ``(n_layouts,)`` each; ``forward`` and ``backward`` include the
    transfers.

    ``copies_forward, copies_backward``: exposed copies between GPU and host (``offload``), part of the passes.
    ``dp``, the exposed transfers of weights and gradients beside each pass, is no part of the passes. ``sent`` are all transfers of
    tensor, context and expert parallelism in each pass, hidden or not; ``sharded`` those of ZeRO 2 and 3.
    ``slowed_forward, slowed_backward``: what compute takes longer in each pass for the transfers that it hides
    (``software.overlap_slowdown``), part of ``compute``.
    ``late``: the weight gradient's part that hides no transfer (``without_hidden``), part of ``backward``; ``beside_late`` the part that
    hides tensor parallelism's, which both take longer where the pass is split; ``delayed``: the weight gradient where all of them run by
    themselves, so that ZeRO's transfers of the backward pass hide behind the rest alone, else 0.
    """

    compute: FloatColumn
    tp: FloatColumn
    cp: FloatColumn
    ep: FloatColumn
    copies_forward: FloatColumn
    copies_backward: FloatColumn
    forward: FloatColumn
    backward: FloatColumn
    dp_forward: FloatColumn
    dp_backward: FloatColumn
    sent: PassTransfers
    sharded: PassTransfers
    slowed_forward: FloatColumn
    slowed_backward: FloatColumn
    late: FloatColumn
    beside_late: FloatColumn
    delayed: FloatColumn

    @property
    def copies(self) -> FloatColumn:
        """Exposed copies between GPU and host in both passes, s."""
        return self.copies_forward + self.copies_backward

    @property
    def dp(self) -> FloatColumn:
        """Exposed transfers of weights and gradients in both passes, s."""
        return self.dp_forward + self.dp_backward

    @property
    def total(self) -> FloatColumn:
        """Forward and backward with all that is exposed, s."""
        return self.forward + self.backward + self.dp

    @property
    def passes(self) -> tuple[FloatColumn, FloatColumn]:
        """Forward and backward, each with all that is exposed, s."""
        return self.forward + self.dp_forward, self.backward + self.dp_backward

    @property
    def busy(self) -> NDArray[np.float64]:
        """Seconds for which its transfers take the port of each network dimension, ``(n_dimensions, n_layouts)``."""
        return self.sent.forward.busy + self.sent.backward.busy + self.sharded.forward.busy + self.sharded.backward.busy


@dataclass(frozen=True)
class Layers:
    """A layer of each kind, and the exposed transfers ahead of the first and behind the last layer: tensor parallelism's (``ends``), and
    ZeRO 2's and 3's of embedding and head (``tables``)."""

    of_kinds: tuple[Layer, ...]
    ends: Ends
    tables: Ends


@dataclass(frozen=True)
class LayersAlone:
    """``Layers`` without what ZeRO 2 and 3 do around embedding and head, which depends on the stages too."""

    of_kinds: tuple[Layer, ...]
    ends: Ends


def layer_time(scenario: Scenario, layouts: Layouts, block: Block, arranged: Arrangement) -> Layers:
    """One layer of each kind of one micro-batch of each layout; layouts that are alike in all that a layer depends on have it timed
    once."""
    first, kind = layouts.alike.by(*layer_columns(scenario))
    alone = rows_of(layers_alone(scenario, layouts.take(first), block.take(first), arranged.take(first)), kind)
    return Layers(alone.of_kinds, alone.ends, exposed_tables(scenario, layouts, arranged, alone.of_kinds))


def layers_alone(scenario: Scenario, layouts: Layouts, block: Block, arranged: Arrangement) -> LayersAlone:
    """One layer of each kind of each layout, and what the ends exchange."""
    around_layers = zip(arranged.sharded, host_copies(scenario, layouts), repeated(scenario, layouts), strict=True)
    parts = zip(block.layers, arranged.transfers.layers, around_layers, strict=True)
    layers = tuple(_layer(scenario, layouts, *of_kind) for of_kind in parts)
    return LayersAlone(layers, exposed_ends(scenario, block, arranged.vocabulary))


def _layer(
    scenario: Scenario,
    layouts: Layouts,
    block: LayerBlock,
    transfers: LayerTransfers,
    around: tuple[PassTransfers, HostCopies, Repeated],
) -> Layer:
    """Compute time of one layer of one kind for one micro-batch, and the part of each transfer that is not hidden.

    Args:
        around: transfers of ZeRO 2 and 3, copies between GPU and host, and what recomputation repeats.
    """
    (sharded, copies, repeats), software = around, scenario.software
    again = recomputed(scenario, layouts, block)
    beside_seconds = beside_compute(scenario, layouts, block, transfers, repeats)
    routed, way = hidden_exchanges(scenario, layouts, block, transfers, repeats, beside_seconds), transfers.ep_exchange.seconds
    ep_forward, ep_backward = routed.exposed_share * 2 * way, routed.exposed_share * (2 + repeats.routed) * way
    forward = block.forward + beside_seconds.tp_forward + beside_seconds.cp_forward + ep_forward
    backward = block.backward + again + beside_seconds.tp_backward + beside_seconds.cp_backward + ep_backward
    all_moved = layer_moved(layouts, transfers, repeats)
    dp_forward = exposed(sharded.forward, software.overlap.dp_overlap, Window(forward, all_moved.forward.busy))
    delayed = np.where(layouts.delays_weights, block.weight_gradient, 0.0)
    dp_backward = exposed(sharded.backward, software.overlap.dp_overlap, Window(backward - delayed, all_moved.backward.busy))
    hidden = beside_seconds.forward + sharded.forward.seconds - dp_forward, beside_seconds.backward + sharded.backward.seconds - dp_backward
    slowed_forward, slowed_backward = slowed_by(scenario, hidden, routed)
    forward, backward = forward + slowed_forward, backward + slowed_backward
    copies_forward, copies_backward = copies.exposed(scenario, forward, backward)
    return Layer(
        compute=block.forward + block.backward + again + slowed_forward + slowed_backward,
        tp=beside_seconds.tp_forward + beside_seconds.tp_backward,
        cp=beside_seconds.cp_forward + beside_seconds.cp_backward,
        ep=ep_forward + ep_backward,
        copies_forward=copies_forward,
        copies_backward=copies_backward,
        forward=forward + copies_forward,
        backward=backward + copies_backward,
        dp_forward=dp_forward,
        dp_backward=dp_backward,
        sent=all_moved,
        sharded=sharded,
        slowed_forward=slowed_forward,
        slowed_backward=slowed_backward,
        late=without_hidden(scenario, layouts, (block, routed, beside_seconds), sharded.backward.seconds - dp_backward),
        beside_late=beside_seconds.behind_weights,
        delayed=delayed,
    )


def without_hidden(
    scenario: Scenario, layouts: Layouts, parts: tuple[LayerBlock, HiddenExchanges, BesideCompute], hidden: FloatColumn
) -> FloatColumn:
    """Seconds of a layer's weight gradient that hide no transfer; so much of ZeRO's hides behind the whole backward pass.

    What hides behind it and what then shows make up one time together. A faster weight gradient shows more of the transfer, in the pass
    that the stage before waits for: were all of it taken to run later, schedules would get slower with it.
    """
    block, routed, beside_seconds = parts
    alone = np.maximum(0.0, block.weight_gradient - routed.late * routed.backward - beside_seconds.behind_weights)
    behind = np.minimum(np.maximum(0.0, hidden), scenario.software.overlap.dp_overlap * alone)
    return np.where(layouts.delays_weights, alone, alone - behind)


@dataclass(frozen=True)
class BesideCompute:
    """Exposed seconds of tensor and context parallelism's transfers of a layer in each pass, and those that hide behind its compute
    (``forward``, ``backward``), of tensor parallelism's those behind weight gradients (``behind_weights``), ``(n_layouts,)`` each."""

    tp_forward: FloatColumn
    tp_backward: FloatColumn
    cp_forward: FloatColumn
    cp_backward: FloatColumn
    forward: FloatColumn
    backward: FloatColumn
    behind_weights: FloatColumn


def beside_compute(scenario: Scenario, layouts: Layouts, block: LayerBlock, transfers: LayerTransfers, repeats: Repeated) -> BesideCompute:
    """What hides of tensor and context parallelism's transfers behind a layer's compute."""
    software = scenario.software
    pipelined = software.overlap.tp_overlap if software.overlap.async_tp else 0.0
    # attention, which rings of context parallelism hide behind, hides nothing of tensor parallelism's transfers
    forward_beside, backward_beside = block.forward - block.attention_forward, block.backward - block.attention_backward
    tp_forward = transfers.tp_forward.seconds - np.minimum(pipelined * transfers.tp_forward.seconds, forward_beside)
    beside_seconds = transfers.tp_backward.seconds + repeats.gathered_again * transfers.tp_gather_again.seconds
    hidden, inputs = pipelined * beside_seconds, np.maximum(0.0, backward_beside - block.weight_gradient)
    # behind weight gradients hides what the pipelined share leaves, unless they run by themselves; all that hides fits into the pass
    at_once = np.where(layouts.delays_weights, 0.0, block.weight_gradient)
    behind = np.minimum(software.overlap.tp_backward_overlap * (beside_seconds - hidden), at_once)
    all_hidden = np.minimum(hidden + behind, np.where(layouts.delays_weights, inputs, backward_beside))
    tp_backward = beside_seconds - all_hidden + repeats.whole * tp_forward
    tp_backward = tp_backward + (1 - pipelined) * repeats.partly * transfers.tp_selective.seconds
    ring = transfers.cp_hop.times(layouts.cp - 1).seconds
    cp_forward = exposed_beside(ring, software.overlap.cp_overlap, block.attention_forward)
    cp_forward = cp_forward + transfers.cp_trade.seconds  # the kernel waits for what is traded
    cp_backward = exposed_beside(2 * ring, software.overlap.cp_overlap, block.attention_backward) + transfers.cp_trade.seconds
    cp_backward = cp_backward + repeats.core * cp_forward
    tp_again = repeats.whole * transfers.tp_forward.seconds + repeats.partly * transfers.tp_selective.seconds
    return BesideCompute(
        tp_forward,
        tp_backward,
        cp_forward,
        cp_backward,
        forward=transfers.tp_forward.seconds + ring + transfers.cp_trade.seconds - tp_forward - cp_forward,
        backward=beside_seconds
        + tp_again
        + (2 + repeats.core) * ring
        + (1 + repeats.core) * transfers.cp_trade.seconds
        - tp_backward
        - cp_backward,
        behind_weights=all_hidden - np.minimum(hidden, inputs),
    )


def slowed_by(scenario: Scenario, hidden: tuple[FloatColumn, FloatColumn], routed: HiddenExchanges) -> tuple[FloatColumn, FloatColumn]:
    """What compute takes longer in each pass for the transfers that it hides, s: NCCL's, and experts' exchanges, whose kernels may hold
    more SMs."""
    slowing = scenario.software.overlap.overlap_slowdown
    sms, exchanged = max(slowing, held_sms(scenario)), (routed.forward, routed.backward)
    ahead, back = (slowing * np.maximum(0.0, exposed) + sms * sent for exposed, sent in zip(hidden, exchanged, strict=True))
    return ahead, back


def slowed_block(scenario: Scenario, layouts: Layouts, block: LayerBlock, layer: Layer) -> LayerBlock:
    """The block with each pass of a layer as much longer as the transfers make it that it hides: what graphs of passes compute.

    A forward pass that runs again is as slow as the first; the gradients have the rest of what the backward pass takes longer.
    """
    if scenario.software.overlap.overlap_slowdown == 0 and held_sms(scenario) == 0:
        return block
    ahead = 1 + layer.slowed_forward / block.forward
    again = (layouts.recompute == RECOMPUTE_FULL) * recomputed(scenario, layouts, block)
    back = 1 + (layer.slowed_backward - (ahead - 1) * again) / block.backward
    longer = {"forward": ahead, "attention_forward": ahead, "spared": ahead, "gather_copies": ahead}
    longer |= {"backward": back, "attention_backward": back, "weight_gradient": back}
    return replace(block, **{name: getattr(block, name) * factor for name, factor in longer.items()})


def exposed_tables(scenario: Scenario, layouts: Layouts, arranged: Arrangement, layers: tuple[Layer, ...]) -> Ends:
    """Exposed seconds of ZeRO 2's and 3's transfers of embedding table and head.

    Nothing is there to hide the table's gather, which comes first, and its reduction, which comes last. The head's gather is asked for when
    the last layer starts, and its gradient is reduced beside the backward passes of the last chunk's layers. There they follow the layers'
    own: the exposed time of both together, less that of the layers' alone, is theirs.
    """
    if not layouts.sharding.gradients.any():
        none = np.zeros(len(layouts))
        return Ends(none, none, none, none)
    tables, counts, share = arranged.tables, _beside_head(arranged.stages) / layouts.chunks, scenario.software.overlap.dp_overlap
    gather, reduce = tables.head.forward, tables.head.backward
    last = layers[architecture_of(scenario).order[-1]]
    one = Window(last.forward, last.sent.forward.busy)
    waits = exposed(gather + last.sharded.forward, share * (counts.sum(axis=0) > 0), one) - last.dp_forward
    backward = summed(counts, [layer.backward - layer.delayed for layer in layers])
    every = Window(backward, summed(counts, [layer.sent.backward.busy for layer in layers]))
    own = transfer.sum_of(layer.sharded.backward.times(count) for count, layer in zip(counts, layers, strict=True))
    ends = exposed(reduce + own, share, every) - summed(counts, [layer.dp_backward for layer in layers])
    return Ends(
        embedding_forward=tables.embedding.forward.seconds,
        embedding_backward=tables.embedding.backward.seconds,
        head_forward=np.clip(waits, 0.0, gather.seconds),
        head_backward=np.clip(ends, 0.0, reduce.seconds),
    )


def _beside_head(stages: Stages) -> NDArray[np.int64]:
    """Layers of each kind on the stage that has the head, ``(n_kinds, n_layouts)``."""
    return np.where(stages.has_head[-1], stages.of_kinds[:, -1], stages.of_kinds[:, 0])


@dataclass(frozen=True)
class HiddenExchanges:
    """Exchanges of experts that run beside another micro-batch's passes (``software.expert_overlap``), ``(n_layouts,)`` each: the share
    of all that is exposed, and the seconds that hide behind a forward and behind a backward pass, of the latter the share ``late`` behind
    weight gradients."""

    exposed_share: FloatColumn
    forward: FloatColumn
    backward: FloatColumn
    late: FloatColumn


def hidden_exchanges(
    scenario: Scenario, layouts: Layouts, block: LayerBlock, transfers: LayerTransfers, repeats: Repeated, beside_seconds: BesideCompute
) -> HiddenExchanges:
    """What hides of a layer's exchanges: all of a forward and a backward pass together hide behind a share of what both passes compute
    with no transfer of tensor or context parallelism beside it (``beside_seconds``), in proportion to how long that is in each, less
    what the passes have that run alone; behind all of it where the schedule runs these passes in pairs. So no second of compute hides
    two transfers."""
    experts, none, paired = scenario.software.experts, np.zeros(len(layouts)), layouts.pairs_passes
    if transfers.route is None or not (experts.expert_overlap or paired.any()):
        return HiddenExchanges(none + 1.0, none, none, none)
    share = np.where(paired, 1.0, experts.ep_overlap * experts.expert_overlap)
    every, computed = transfers.ep_exchange.seconds * (4.0 + repeats.routed), block.backward + recomputed(scenario, layouts, block)
    ahead, back = np.maximum(0.0, block.forward - beside_seconds.forward), np.maximum(0.0, computed - beside_seconds.backward)
    hidden = np.minimum(every, share * (ahead + back)) * (1.0 - np.where(paired, 0.0, alone_share(layouts)))
    exposed_share = 1.0 - np.divide(hidden, every, out=np.zeros(len(layouts)), where=every > 0)
    forward = hidden * np.divide(ahead, ahead + back, out=np.zeros(len(layouts)), where=ahead + back > 0)
    return HiddenExchanges(exposed_share, forward, hidden - forward, block.weight_gradient / computed)


def layer_moved(layouts: Layouts, transfers: LayerTransfers, repeats: Repeated) -> PassTransfers:
    """All transfers of tensor, context and expert parallelism in each pass of a layer, what recomputation ``repeats`` included."""
    found_once = layouts.alike.remembered.once
    return found_once((layer_moved, transfers, repeats), lambda: _layer_moved(layouts, transfers, repeats))


def _layer_moved(layouts: Layouts, transfers: LayerTransfers, repeats: Repeated) -> PassTransfers:
    ring = transfers.cp_hop.times(layouts.cp - 1)
    again = transfers.tp_forward.times(repeats.whole) + transfers.tp_selective.times(repeats.partly)
    again = again + ring.times(repeats.core) + transfers.cp_trade.times(repeats.core) + transfers.ep_exchange.times(repeats.routed)
    backward = transfers.tp_backward + transfers.tp_gather_again.times(repeats.gathered_again)
    backward = backward + ring.times(2.0) + transfers.cp_trade + transfers.ep_exchange.times(2.0)
    return PassTransfers(transfers.tp_forward + ring + transfers.cp_trade + transfers.ep_exchange.times(2), backward + again)
