"""The protocol of what stands before a model's first layer and behind its last one, beside a part's: nothing, where a model has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rapid_dse.model.layers.part import Part
from rapid_dse.model.shapes import FloatColumn, MicroBatch
from rapid_dse.parallel.layouts import IntColumn


@dataclass(frozen=True)
class Logits:
    """What a loss reads on a rank, ``(n_shapes,)`` each: rows, and their columns, ``counted`` without padding."""

    rows: FloatColumn
    columns: FloatColumn
    counted: FloatColumn


@dataclass(frozen=True)
class End(Part):
    """What stands before the first layer, or behind the last one: nothing, unless a subclass says more.

    ``shared``: tensor-parallel ranks hold a share of its rows each, and exchange the stream around it; else each rank holds it whole and
    runs it on its own tokens. ``frozen``: its weights are not trained. ``predictions``: tokens beside the next one that the head predicts,
    each from a stream of its own.
    """

    frozen: bool = False
    predictions: int = 0

    shared: ClassVar[bool] = False

    def weights(self, tp: IntColumn) -> FloatColumn:
        """Parameters that a tensor-parallel rank holds, those of positions left out, ``(n,)``."""
        return np.zeros(len(tp))

    def counted(self) -> int:
        """Parameters of the whole of it, without padding, positions and norms."""
        return round(float(self.parameters(MicroBatch.single()).added))

    def positions(self, seq_len: int) -> int:
        """Parameters of a table of positions, whole on each rank."""
        return 0

    def flops(self, shape: MicroBatch) -> FloatColumn:
        """FLOP that count as the model's of its forward pass on one rank, ``(n_shapes,)``."""
        return sum((product.flops for product in self.products(shape)), np.zeros(len(shape.tp)))

    def logits(self, shape: MicroBatch) -> Logits:
        """What the loss reads; nothing before the first layer."""
        none = np.zeros(len(shape.tp))
        return Logits(none, none, none)
