"""The head: the product with the vocabulary, whose weights may be the embedding table's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from rapid_dse.model.layers.embedding import padded_vocab, table_parameters
from rapid_dse.model.layers.end import End, Logits
from rapid_dse.model.layers.part import PartParameters, norm_parameters
from rapid_dse.model.shapes import FloatColumn, MatMul, MicroBatch
from rapid_dse.parallel.layouts import IntColumn


@dataclass(frozen=True)
class Head(End):
    """The last norm and the product with the vocabulary, in 16 bits whatever the layers run in."""

    shared: ClassVar[bool] = True

    def parameters(self, shape: MicroBatch) -> PartParameters:
        return PartParameters(table_parameters(self.model, shape.tp), norms=norm_parameters(self.model, self.model.hidden_size))

    def products(self, shape: MicroBatch) -> list[MatMul]:
        rows, hidden = padded_vocab(self.model, shape.tp) / shape.tp, np.full_like(shape.tokens, self.model.hidden_size)
        head = MatMul("head", shape.tokens, rows, hidden, sixteen_bit=True, frozen=self.frozen)
        return [head, *(replace(head, name=f"head_{ahead}") for ahead in range(2, 2 + self.predictions))]

    def counted(self) -> int:
        return self.model.vocab_size * self.model.hidden_size

    def weights(self, tp: IntColumn) -> FloatColumn:
        return table_parameters(self.model, tp)

    def flops(self, shape: MicroBatch) -> FloatColumn:
        """Without the padding of the vocabulary."""
        flops: FloatColumn = (1 + self.predictions) * 2 * shape.tokens * self.model.hidden_size * self.model.vocab_size / shape.tp
        return flops

    def logits(self, shape: MicroBatch) -> Logits:
        """A row a token of each stream."""
        tokens = (1 + self.predictions) * shape.tokens
        return Logits(tokens, padded_vocab(self.model, shape.tp) / shape.tp, self.model.vocab_size / shape.tp)
