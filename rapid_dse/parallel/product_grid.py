"""How one matrix product is divided over the GPUs of a tensor-parallel group.

C (m × n) = A (m × k) · B (k × n) on a grid of ``rows`` × ``columns`` × ``depth`` GPUs:

- column: B's columns are divided, and C's with them (1 × tp × 1); A is on every rank.
- row: B's rows are divided, and A's columns with them (1 × 1 × tp): each rank has a part of every sum (Shoeybi et al., arXiv 1909.08053,
  section 3, for both).
- 2d: blocks of all three on a grid as square as it goes (van de Geijn and Watts, SUMMA, 1997; Xu et al., arXiv 2104.05343, for the
  products of the backward pass).
- 2.5d: ``depth`` such square grids, each of which has a part of every sum (Solomonik and Demmel, Euro-Par 2011, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.run import GemmSharding

IntColumn = NDArray[np.int64]


@dataclass(frozen=True)
class ProductGrid:
    """GPUs along each side, ``(n,)`` each; neighbours are those of a row, then those of a column. ``whole``: A is on every rank of a row
    already (column sharding), and nothing of it is gathered."""

    rows: IntColumn
    columns: IntColumn
    depth: IntColumn
    whole: bool = False


def product_grid(sharding: GemmSharding, tp: IntColumn) -> ProductGrid:
    """The grid of so many GPUs; a side of 0 where there is none."""
    one = np.ones_like(tp)
    if sharding == "row":
        return ProductGrid(one, one, tp)
    if sharding == "column":
        return ProductGrid(one, tp, one, whole=True)
    sides = {ranks: _square(ranks) if sharding == "2d" else _deep(ranks) for ranks in np.unique(tp).tolist()}
    rows, columns, depth = (np.array([sides[ranks][side] for ranks in tp.tolist()], np.int64) for side in range(3))
    return ProductGrid(rows, columns, depth)


def _square(ranks: int) -> tuple[int, int, int]:
    rows = next(side for side in range(int(ranks**0.5), 0, -1) if ranks % side == 0)
    return rows, ranks // rows, 1


def _deep(ranks: int) -> tuple[int, int, int]:
    """The deepest stack of at least two square grids, no deeper than a side: beyond it copies save nothing (section 3.1)."""
    for depth in range(round(ranks ** (1 / 3)), 1, -1) if ranks > 1 else ():
        side = round((ranks / depth) ** 0.5)
        if side * side * depth == ranks and depth <= side:
            return side, side, depth
    return (1, 1, 1) if ranks == 1 else (0, 0, 0)
