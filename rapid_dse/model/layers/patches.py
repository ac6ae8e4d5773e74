"""What makes tokens of images: a product with each patch, positions that are added, and learned tokens in front."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapid_dse.config.software import Software
from rapid_dse.model.layers.eager_kernels import JOIN, REORDER, SUM
from rapid_dse.model.layers.end import End
from rapid_dse.model.layers.part import PartParameters, SmallKernel
from rapid_dse.model.shapes import FloatColumn, MatMul, MicroBatch
from rapid_dse.parallel.layouts import IntColumn

CHANNELS = 3


@dataclass(frozen=True)
class Patches(End):
    """The patches of an image as rows of one product (Dosovitskiy et al., arXiv 2010.11929, section 3.1: a convolution whose stride is its
    width). Small beside the layers, it lies whole on each tensor-parallel rank, which makes the tokens that its layers begin with."""

    @property
    def _inputs(self) -> int:
        """Numbers of a patch."""
        return CHANNELS * (self.model.patch_size or 0) ** 2

    def _rows(self, shape: MicroBatch) -> FloatColumn:
        """Patches of a micro-batch on a rank."""
        rows: FloatColumn = shape.norm_tokens * self.model.patches / (self.model.sample_tokens or 1)
        return rows

    def parameters(self, shape: MicroBatch) -> PartParameters:
        """The product with its bias, and the learned tokens in front."""
        return PartParameters(added=float(self.weights(np.ones(1, np.int64))[0]))

    def weights(self, tp: IntColumn) -> FloatColumn:
        return np.full(len(tp), float(self.model.hidden_size * (self._inputs + 1 + self.model.num_prefix_tokens)))

    def positions(self, seq_len: int) -> int:
        """A row a patch, and one a learned token, where positions are learned."""
        return (self.model.sample_tokens or 0) * self.model.hidden_size if self.model.position_embedding == "learned" else 0

    def products(self, shape: MicroBatch) -> list[MatMul]:
        rows, wide = self._rows(shape), self.model.hidden_size
        sizes = rows, np.full_like(rows, wide), np.full_like(rows, self._inputs)
        return [MatMul("patches", *sizes, sixteen_bit=True, convolved=True)]

    def small_kernels(self, shape: MicroBatch, software: Software) -> list[SmallKernel]:
        """Pixels are laid out by patch; learned tokens are put in front, and positions added, each a copy of the stream. Backward the
        gradient of the patches is copied out of the stream's, which is read once more for that of the positions. Eager kernels turn
        channels of patches into patches of channels where they join them with the learned tokens."""
        pixels, stream = self._rows(shape) * self._inputs, shape.norm_tokens * self.model.hidden_size
        forward, backward = (JOIN + SUM, REORDER + 1.0) if software.kernels.eager else (4.0, 3.0)
        return [SmallKernel("patches_laid_out", 2 * pixels, 0.0), SmallKernel("put_in_front", forward * stream, backward * stream)]

    def operations(self) -> float:
        """Convolution, join, sum."""
        return 3.0
