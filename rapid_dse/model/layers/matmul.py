"""One matrix product C = A · B, divided over a tensor-parallel group as ``parallel.gemm_sharding`` says; its weights are B."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from rapid_dse.config.run import GemmSharding
from rapid_dse.config.software import Software
from rapid_dse.model.layers.part import ForwardStep, GridMove, Part, PartParameters, Tensor
from rapid_dse.model.shapes import FloatColumn, MatMul, MicroBatch
from rapid_dse.parallel.product_grid import ProductGrid, product_grid


@dataclass(frozen=True)
class OneProduct(Part):
    """The product of a rank's blocks, and what it gathers for them and sums of them.

    On a grid of r × c × d GPUs, with m rows on each data-parallel rank, a rank multiplies m/r × k/d with k/d × n/c. A is gathered along
    rows of the grid, B along columns, and sums over the depth are reduced; backward the gradient of C is where C is, and those of A and B
    are summed and scattered to where their blocks are. What was gathered is kept for the backward pass.
    """

    sharding: GemmSharding = "row"

    def sharded(self, sharding: GemmSharding) -> Self:
        return replace(self, sharding=sharding)

    def _grid(self, shape: MicroBatch) -> ProductGrid:
        grid = product_grid(self.sharding, shape.tp)
        rows, columns, depth = (np.maximum(1, side) for side in (grid.rows, grid.columns, grid.depth))  # what is no grid is refused
        return ProductGrid(rows, columns, depth, grid.whole)

    def _sizes(self) -> tuple[float, float]:
        return float(self.model.n or 0), float(self.model.k or 0)

    def parameters(self, shape: MicroBatch) -> PartParameters:
        columns, inner = self._sizes()
        return PartParameters(products=columns * inner / shape.tp)

    def products(self, shape: MicroBatch) -> list[MatMul]:
        grid, (columns, inner) = self._grid(shape), self._sizes()
        return [MatMul("product", shape.tokens / grid.rows, columns / grid.columns, inner / grid.depth, second=0.0)]

    def tensors(self, shape: MicroBatch, software: Software) -> list[Tensor]:
        """A's block as it is multiplied, B's where it is gathered, and C's, of which the gradient alone is needed."""
        grid, (columns, inner) = self._grid(shape), self._sizes()
        gathered_left = shape.tokens / grid.rows * inner / grid.depth
        return [
            Tensor("product_input", gathered_left, "input"),
            Tensor("gathered_weights", self.gathered(shape)),
            Tensor("product_output", shape.tokens / grid.rows * columns / grid.columns, product=True, kept=False),
        ]

    def gathered(self, shape: MicroBatch) -> FloatColumn:
        """B's block, where a rank has a part of it alone."""
        grid, (columns, inner) = self._grid(shape), self._sizes()
        return np.where(grid.rows > 1, inner / grid.depth * columns / grid.columns, 0.0)

    def steps(self) -> tuple[ForwardStep, ...]:
        return (ForwardStep("product", "product_input", ("product_output",)),)

    def moves(self, shape: MicroBatch) -> tuple[GridMove, ...]:
        grid, (columns, inner) = self._grid(shape), self._sizes()
        left_factor, right, result = (
            shape.tokens / grid.rows * inner / grid.depth,
            inner / grid.depth * columns / grid.columns,
            shape.tokens / grid.rows * columns / grid.columns,
        )
        one = np.ones_like(grid.rows)
        in_row, in_column, in_depth = (
            (grid.columns, one),
            (grid.rows, grid.columns),
            (grid.depth, grid.rows * grid.columns),
        )
        if grid.whole:  # every rank has a sum of A's gradient
            return (GridMove("ALL_REDUCE", left_factor, *in_row, backward=True),)
        if self.sharding == "row":
            return (GridMove("ALL_REDUCE", result, *in_depth),)
        return (
            GridMove("ALL_GATHER", left_factor, *in_row),
            GridMove("ALL_GATHER", right, *in_column),
            GridMove("REDUCE_SCATTER", result, *in_depth),
            GridMove("ALL_GATHER", result, *in_depth, backward=True),
            GridMove("REDUCE_SCATTER", left_factor, *in_row, backward=True),
            GridMove("REDUCE_SCATTER", right, *in_column, backward=True),
        )

    def launches(self) -> float:
        """None that a framework makes: a product is launched by whoever runs it, ahead of the device."""
        return 0.0


PART = OneProduct
