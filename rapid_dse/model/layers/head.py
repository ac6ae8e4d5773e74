"""The head: the product with the vocabulary, whose weights may be the embedding table's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapid_dse.model.layers.embedding import padded_vocab, table_parameters
from rapid_dse.model.layers.part import Part, PartParameters, norm_parameters
from rapid_dse.model.shapes import MatMul, MicroBatch


@dataclass(frozen=True)
class Head(Part):
    """The last norm and the product with the vocabulary, in 16 bits whatever the layers run in; ``frozen``: its weights are not trained."""

    frozen: bool = False

    def parameters(self, shape: MicroBatch) -> PartParameters:
        return PartParameters(table_parameters(self.model, shape.tp), norms=norm_parameters(self.model, self.model.hidden_size))

    def products(self, shape: MicroBatch) -> list[MatMul]:
        rows, hidden = padded_vocab(self.model, shape.tp) / shape.tp, np.full_like(shape.tokens, self.model.hidden_size)
        return [MatMul("head", shape.tokens, rows, hidden, sixteen_bit=True, frozen=self.frozen)]
