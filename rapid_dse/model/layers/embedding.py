"""The embedding table: a row a token of the vocabulary, and where positions are learned a row a position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rapid_dse.config.model import Model
from rapid_dse.config.software import Software
from rapid_dse.model.layers.end import End
from rapid_dse.model.layers.part import PartParameters, SmallKernel
from rapid_dse.model.shapes import FloatColumn, MicroBatch
from rapid_dse.parallel.layouts import IntColumn

VOCAB_MULTIPLE = 128  # Megatron's make-vocab-size-divisible-by


def padded_vocab(model: Model, tp: IntColumn) -> IntColumn:
    """Rows of the embedding table, padded to a multiple of 128 · tp, ``(n,)``."""
    multiple = VOCAB_MULTIPLE * tp
    rows: IntColumn = -(-model.vocab_size // multiple) * multiple
    return rows


def table_parameters(model: Model, tp: IntColumn) -> FloatColumn:
    """Parameters of one embedding table, or of one head, that a tensor-parallel rank holds, ``(n,)``."""
    return padded_vocab(model, tp) * (model.hidden_size / tp)


@dataclass(frozen=True)
class Embedding(End):
    """Look-up of tokens, and of positions where they are learned."""

    shared: ClassVar[bool] = True

    def parameters(self, shape: MicroBatch) -> PartParameters:
        """Of the table of tokens; each rank has a share of its rows."""
        return PartParameters(products=table_parameters(self.model, shape.tp))

    def counted(self) -> int:
        return self.model.vocab_size * self.model.hidden_size

    def weights(self, tp: IntColumn) -> FloatColumn:
        return table_parameters(self.model, tp)

    def small_kernels(self, shape: MicroBatch, software: Software) -> list[SmallKernel]:
        """A row a token; its gradient is read, and added to a row where the table is trained."""
        stream = shape.tokens * self.model.hidden_size
        return [SmallKernel("look_up", 2 * stream, 0.0) if self.frozen else SmallKernel("look_up", stream, 2 * stream)]

    def positions(self, seq_len: int) -> int:
        return seq_len * self.model.hidden_size if self.model.position_embedding == "learned" else 0
