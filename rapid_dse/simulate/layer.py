"""One layer of one micro-batch in closed form: its compute time, and the part of each transfer that is not hidden."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import rows_of
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import Software
from rapid_dse.cost.overlap import Window, exposed
from rapid_dse.parallel.layouts import RECOMPUTE_FULL, RECOMPUTE_SELECTIVE, BoolColumn, Layouts
from rapid_dse.simulate.arrangement import MICRO_BATCH, Arrangement
from rapid_dse.simulate.communication import Traffic
from rapid_dse.simulate.layer_work import Block
from rapid_dse.simulate.sharding import PassTransfers
from rapid_dse.simulate.vocabulary import Ends, exposed_ends

FloatColumn = NDArray[np.float64]


LAYER = (*MICRO_BATCH, "recompute", "sharded_passes")  # columns of Layouts on which a layer depends


@dataclass(frozen=True)
class LayerAlone:
    """Exposed seconds of one layer and one micro-batch, ``(n_layouts,)`` each; ``forward`` and ``backward`` include the transfers.

    ``dp``, what shows during each pass of the transfers of weights and gradients, is no part of them. ``moved`` are all transfers of
    tensor, context and expert parallelism in each pass, hidden or not; ``sharded`` those of ZeRO 2 and 3. ``ends``: what shows of tensor
    parallelism's transfers ahead of the first and behind the last layer. ``slowed_forward, slowed_backward``: what compute takes longer in
    each pass for the transfers that it hides (``software.overlap_slowdown``), part of ``compute``.
    """

    compute: FloatColumn
    tp: FloatColumn
    cp: FloatColumn
    ep: FloatColumn
    forward: FloatColumn
    backward: FloatColumn
    dp_forward: FloatColumn
    dp_backward: FloatColumn
    moved: PassTransfers
    sharded: PassTransfers
    ends: Ends
    slowed_forward: FloatColumn
    slowed_backward: FloatColumn

    @property
    def dp(self) -> FloatColumn:
        """What shows of transfers of weights and gradients in both passes, s."""
        return self.dp_forward + self.dp_backward

    @property
    def total(self) -> FloatColumn:
        """Forward and backward with all that is exposed, s."""
        return self.forward + self.backward + self.dp

    @property
    def busy(self) -> NDArray[np.float64]:
        """Seconds for which its transfers take the port of each network dimension, ``(n_dimensions, n_layouts)``."""
        return self.moved.forward.busy + self.moved.backward.busy + self.sharded.forward.busy + self.sharded.backward.busy


@dataclass(frozen=True)
class Layer(LayerAlone):
    """A layer, with what shows of ZeRO 2's and 3's transfers of embedding ``tables`` and head ahead of the first and behind the last."""

    tables: Ends


def layer_time(scenario: Scenario, layouts: Layouts, block: Block, arranged: Arrangement) -> Layer:
    """One layer of one micro-batch of each layout; layouts that are alike in all that a layer depends on have it timed once."""
    first, kind = layouts.alike.by(*LAYER)
    alone = rows_of(_layer_alone(scenario, layouts.take(first), block.take(first), arranged.take(first)), kind)
    tables = exposed_tables(scenario.software, layouts, arranged, alone)
    return Layer(**{field.name: getattr(alone, field.name) for field in fields(alone)}, tables=tables)


def _layer_alone(scenario: Scenario, layouts: Layouts, block: Block, arranged: Arrangement) -> LayerAlone:
    """One layer of one micro-batch: compute, and what of its transfers shows."""
    software, moved, sharded = scenario.software, arranged.traffic, arranged.sharded
    full, ring_again = layouts.recompute == RECOMPUTE_FULL, rings_again(software, layouts)
    again = recomputed(software, layouts, block)
    pipelined = software.overlap.tp_overlap if software.overlap.async_tp else 0.0
    # attention, which rings of context parallelism hide behind, hides nothing of tensor parallelism's transfers
    forward_beside, backward_beside = block.layer_forward - block.attention_forward, block.layer_backward - block.attention_backward
    tp_forward = moved.tp_forward.seconds - np.minimum(pipelined * moved.tp_forward.seconds, forward_beside)
    beside = moved.tp_backward + moved.tp_gather_again
    hidden = pipelined * beside.seconds
    # behind weight gradients hides what the pipelined share leaves; all that hides fits into the pass
    hidden = hidden + np.minimum(software.overlap.tp_backward_overlap * (beside.seconds - hidden), block.weight_gradient)
    tp_backward = beside.seconds - np.minimum(hidden, backward_beside) + np.where(full, tp_forward, 0.0)
    ring = moved.cp_hop.times(layouts.cp - 1)
    cp_forward = _beside(ring.seconds, software.overlap.cp_overlap, block.attention_forward)
    cp_backward = _beside(2 * ring.seconds, software.overlap.cp_overlap, block.attention_backward) + np.where(ring_again, cp_forward, 0.0)
    ep_forward = 2 * moved.ep_exchange.seconds
    ep_backward = ep_forward * np.where(full, 2.0, 1.0)
    forward = block.layer_forward + tp_forward + cp_forward + ep_forward
    backward = block.layer_backward + again + tp_backward + cp_backward + ep_backward
    all_moved = layer_moved(scenario, layouts, moved)
    dp_forward = exposed(sharded.forward, software.overlap.dp_overlap, Window(forward, all_moved.forward.busy))
    dp_backward = exposed(sharded.backward, software.overlap.dp_overlap, Window(backward, all_moved.backward.busy))
    hidden_forward = moved.tp_forward.seconds + ring.seconds + sharded.forward.seconds - tp_forward - cp_forward - dp_forward
    sent_backward = beside.seconds + full * moved.tp_forward.seconds + (2 + ring_again) * ring.seconds + sharded.backward.seconds
    hidden_backward = sent_backward - tp_backward - cp_backward - dp_backward
    slowed_forward, slowed_backward = (
        software.overlap.overlap_slowdown * np.maximum(0.0, each) for each in (hidden_forward, hidden_backward)
    )
    forward, backward = forward + slowed_forward, backward + slowed_backward
    return LayerAlone(
        compute=block.layer_forward + block.layer_backward + again + slowed_forward + slowed_backward,
        tp=tp_forward + tp_backward,
        cp=cp_forward + cp_backward,
        ep=ep_forward + ep_backward,
        forward=forward,
        backward=backward,
        dp_forward=dp_forward,
        dp_backward=dp_backward,
        moved=all_moved,
        sharded=sharded,
        ends=exposed_ends(scenario, block, arranged.vocabulary),
        slowed_forward=slowed_forward,
        slowed_backward=slowed_backward,
    )


def slowed_block(software: Software, layouts: Layouts, block: Block, layer: LayerAlone) -> Block:
    """The block with each pass of a layer as much longer as the transfers make it that it hides: what graphs of passes compute.

    A forward pass that runs again is as slow as the first; the gradients have the rest of what the backward pass takes longer.
    """
    if software.overlap.overlap_slowdown == 0:
        return block
    ahead = 1 + layer.slowed_forward / block.layer_forward
    again = (layouts.recompute == RECOMPUTE_FULL) * recomputed(software, layouts, block)
    back = 1 + (layer.slowed_backward - (ahead - 1) * again) / block.layer_backward
    longer = {"layer_forward": ahead, "attention_forward": ahead, "spared": ahead}
    longer |= {"layer_backward": back, "attention_backward": back, "weight_gradient": back}
    return replace(block, **{name: getattr(block, name) * factor for name, factor in longer.items()})


def exposed_tables(software: Software, layouts: Layouts, arranged: Arrangement, layer: LayerAlone) -> Ends:
    """What shows of ZeRO 2's and 3's transfers of embedding table and head.

    Nothing is there to hide the table's gather, which comes first, and its reduction, which comes last. The head's gather is asked for when
    the last layer starts, and its gradient is reduced beside the backward passes of the last chunk's layers. There they follow the layers'
    own: what shows of both together is theirs but for what shows of the layers' alone.
    """
    if not (layouts.zero >= 2).any():
        none = np.zeros(len(layouts))
        return Ends(none, none, none, none)
    sharded, tables, found = layer.sharded, arranged.tables, arranged.stages
    layers = np.where(found.has_head[-1], found.layers[-1], found.layers[0]) / layouts.chunks
    gather, reduce, share = tables.head.forward, tables.head.backward, software.overlap.dp_overlap
    one = Window(layer.forward, layer.moved.forward.busy)
    waits = exposed(gather + sharded.forward, share * (layers > 0), one) - layer.dp_forward
    every = Window(layers * layer.backward, layers * layer.moved.backward.busy)
    ends = exposed(reduce + sharded.backward.times(layers), share, every) - layers * layer.dp_backward
    return Ends(
        embedding_forward=tables.embedding.forward.seconds,
        embedding_backward=tables.embedding.backward.seconds,
        head_forward=np.clip(waits, 0.0, gather.seconds),
        head_backward=np.clip(ends, 0.0, reduce.seconds),
    )


def layer_moved(scenario: Scenario, layouts: Layouts, moved: Traffic) -> PassTransfers:
    """All transfers of tensor, context and expert parallelism in each pass of a layer, what recomputation repeats included."""
    full, ring_again = layouts.recompute == RECOMPUTE_FULL, rings_again(scenario.software, layouts)
    ring, routed = moved.cp_hop.times(layouts.cp - 1), moved.ep_exchange.times(2)
    backward = moved.tp_backward + moved.tp_gather_again + ring.times(2.0 + ring_again) + routed.times(1.0 + full)
    return PassTransfers(moved.tp_forward + ring + routed, backward + moved.tp_forward.times(full))


def rings_again(software: Software, layouts: Layouts) -> BoolColumn:
    """Whether the backward pass runs ring attention forward once more, ``(n_layouts,)``."""
    core = (layouts.recompute == RECOMPUTE_SELECTIVE) & (software.memory.selective_recompute == "core_attention")
    again: BoolColumn = ((layouts.recompute == RECOMPUTE_FULL) | core) & software.memory.recomputes_attention
    return again


def recomputed(software: Software, layouts: Layouts, block: Block) -> FloatColumn:
    """What the backward pass of a layer computes once more, s, ``(n_layouts,)``."""
    whole = block.layer_forward - block.spared - (0.0 if software.memory.recomputes_attention else block.attention_forward)
    partly = np.where(layouts.recompute == RECOMPUTE_SELECTIVE, block.selective_recompute, 0.0)
    return np.where(layouts.recompute == RECOMPUTE_FULL, whole, partly)


def _beside(transfer: FloatColumn, share: float, compute: FloatColumn) -> FloatColumn:
    """What shows of a transfer that can hide behind ``share`` of ``compute``."""
    return np.maximum(0.0, transfer - share * compute)
