"""Layouts that are alike in all that a layer depends on, once each, and what a step takes of their layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import Positions, rows_of, summed
from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.arrangement import Arrangement
from rapid_dse.simulate.held_weights import mean_of_stages
from rapid_dse.simulate.layer import Layer, LayersAlone, exposed_tables, layer_columns
from rapid_dse.simulate.layer_work import Block
from rapid_dse.simulate.slots import host_layer_seconds
from rapid_dse.simulate.vocabulary import Ends

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class LayerKinds:
    """A table's layouts by what a layer depends on (``layer.layer_columns``).

    Attributes:
        kind: of each layout, ``(n_layouts,)``.
        layouts, arranged, block: of one layout of each kind.
    """

    kind: Positions
    layouts: Layouts
    arranged: Arrangement
    block: Block

    @classmethod
    def single(cls, layouts: Layouts, arranged: Arrangement, block: Block) -> LayerKinds:
        """Each layout as a kind of its own."""
        return cls(np.arange(len(layouts)), layouts, arranged, block)


@dataclass(frozen=True)
class PerLayer:
    """Exposed seconds of a layer of each kind for a micro-batch, ``(n_kinds, n_layouts)`` each; as of ``Layer``, both passes together."""

    compute: FloatColumn
    tp: FloatColumn
    cp: FloatColumn
    ep: FloatColumn
    copies: FloatColumn
    dp: FloatColumn

    def of_stage(self, counts: NDArray[np.int64]) -> PerLayer:
        """Those of so many layers of each kind, ``(n_layouts,)`` each."""
        return PerLayer(*(summed(counts, column) for column in (self.compute, self.tp, self.cp, self.ep, self.copies, self.dp)))


@dataclass(frozen=True)
class MicroBatchTimes:
    """What a micro-batch takes of layers and ends, s, ``(n_layouts,)``; of a layer of each kind ``(n_kinds, n_layouts)``.

    Attributes:
        forward, backward: a layer's passes, exposed transfers included; ``weights``: the part of the latter that may run later,
            ``beside_weights``: what that takes longer then.
        terms: what a layer takes, by term.
        forward_busy, backward_busy: seconds for which transfers of a layer's pass take each port, ``(n_kinds, n_dimensions, n_layouts)``.
        reduced: seconds of a layer's transfers of ZeRO 2 and 3 in its backward pass.
        host: in which the host launches a layer.
        embedding, embedding_backward, head_forward, head_backward: passes of the ends, exposed transfers included, but for those of
            ZeRO 2 and 3; ``beside_embedding, beside_head``: those transfers.
        hop: one send to the next stage; ``hop_busy``: it takes each port, of which the mean stage's layers leave ``free`` seconds free,
            ``(n_dimensions, n_layouts)``.
    """

    forward: FloatColumn
    backward: FloatColumn
    weights: FloatColumn
    beside_weights: FloatColumn
    terms: PerLayer
    forward_busy: NDArray[np.float64]
    backward_busy: NDArray[np.float64]
    reduced: FloatColumn
    host: FloatColumn
    embedding: FloatColumn
    embedding_backward: FloatColumn
    head_forward: FloatColumn
    head_backward: FloatColumn
    beside_embedding: FloatColumn
    beside_head: FloatColumn
    hop: FloatColumn
    hop_busy: NDArray[np.float64]
    free: NDArray[np.float64]

    def with_tables(self, tables: Ends) -> MicroBatchTimes:
        """The same with ZeRO 2's and 3's exposed transfers of embedding and head in the passes of the ends."""
        return replace(
            self,
            embedding=self.embedding + tables.embedding_forward,
            embedding_backward=self.embedding_backward + tables.embedding_backward,
            head_forward=self.head_forward + tables.head_forward,
            head_backward=self.head_backward + tables.head_backward,
        )


def micro_batch_times(scenario: Scenario, kinds: LayerKinds, layers: Sequence[Layer], ends: Ends) -> MicroBatchTimes:
    """Those of each kind of layouts, from a layer of each kind and what the ends exchange."""
    hop, around, passes = kinds.arranged.hop, ends.added_to(kinds.block), [layer.passes for layer in layers]
    unhidden = [np.maximum(0.0, layer.total - layer.busy) for layer in layers]
    terms = (np.stack([getattr(layer, name) for layer in layers]) for name in ("compute", "tp", "cp", "ep", "copies", "dp"))
    return MicroBatchTimes(
        forward=np.stack([forward for forward, _ in passes]),
        backward=np.stack([backward for _, backward in passes]),
        weights=np.stack([layer.late for layer in layers]),
        beside_weights=np.stack([layer.beside_late for layer in layers]),
        terms=PerLayer(*terms),
        forward_busy=np.stack([layer.sent.forward.busy + layer.sharded.forward.busy for layer in layers]),
        backward_busy=np.stack([layer.sent.backward.busy + layer.sharded.backward.busy for layer in layers]),
        reduced=np.stack([layer.sharded.backward.seconds for layer in layers]),
        host=host_layer_seconds(scenario, kinds.layouts),
        embedding=around.embedding,
        embedding_backward=around.embedding_backward,
        head_forward=around.head_forward,
        head_backward=around.head_backward,
        beside_embedding=ends.embedding,
        beside_head=ends.head,
        hop=hop.seconds,
        hop_busy=hop.busy,
        free=mean_of_stages(scenario, kinds.layouts, unhidden),
    )


def tables_of(scenario: Scenario, layouts: Layouts, arranged: Arrangement, kind: Positions, alone: LayersAlone) -> Ends | None:
    """``exposed_tables`` of each layout, found once for layouts that are alike in them; None where ZeRO shards no gradients.

    Args:
        kind: where the layers of each layout stand in ``alone``.
    """
    rows = np.flatnonzero(layouts.sharding.gradients)  # often few: many frameworks have no ZeRO 2 and 3 with pipelines
    if not len(rows):
        return None
    first, alike = layouts.take(rows).alike.by(*layer_columns(scenario), "chunks", "stage_map")
    chosen = rows.take(first)
    tables = exposed_tables(scenario, layouts.take(chosen), arranged.take(chosen), rows_of(alone, kind.take(chosen)).of_kinds)
    columns = []
    for column in (tables.embedding_forward, tables.embedding_backward, tables.head_forward, tables.head_backward):
        columns.append(np.zeros(len(layouts)))
        columns[-1][rows] = column.take(alike)
    return Ends(*columns)
