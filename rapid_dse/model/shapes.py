"""Shapes that work is told in: micro-batches on a rank, and matrix products, as columns.

A column here has one entry a distinct micro-batch shape: ``(tp, cp, ep, etp, micro_batch_size, sequence_parallel)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.run import Workload
from rapid_dse.parallel.layouts import BoolColumn, IntColumn, Layouts

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class MicroBatch:
    """Distinct micro-batch shapes; every column ``(n_shapes,)``. ``seq_len`` is the whole sequence's, of which attention goes over
    ``documents`` equal ones by themselves; ``etp`` ranks share an expert; ``expert_load`` are the rows of the busiest rank's experts over
    the mean. ``same_tokens``: whether the ranks that divide the experts all have the same tokens, of whose copies each keeps those for its
    own experts, so that none travel. ``fills_up``: whether the rows of each expert are filled up to what products in fewer than 16 bits
    take."""

    tp: IntColumn
    cp: IntColumn
    ep: IntColumn
    etp: IntColumn
    micro_batch_size: IntColumn
    sequence_parallel: BoolColumn
    seq_len: int
    expert_load: FloatColumn | float = 1.0
    documents: float = 1.0
    same_tokens: BoolColumn | bool = False
    fills_up: bool = False

    @classmethod
    def of(cls, layouts: Layouts, work: Workload) -> MicroBatch:
        """That of each layout."""
        return layouts.alike.remembered.once((cls, work), lambda: cls._of(layouts, work))

    @classmethod
    def _of(cls, layouts: Layouts, work: Workload) -> MicroBatch:
        degrees = (layouts.tp, layouts.cp, layouts.ep, layouts.expert_tp, layouts.micro_batch_size)
        load, narrow = work.expert_load(layouts.ep), work.precision in ("fp8", "fp4")
        ragged = narrow and work.expert_capacity is None
        return cls(*degrees, layouts.sequence_parallel, work.seq_len, load, 1 / work.packing, fills_up=ragged)

    @classmethod
    def single(cls, seq_len: int = 1) -> MicroBatch:
        """One sequence of so many tokens on one rank."""
        one = np.ones(1, np.int64)
        return cls(one, one, one, one, one, np.zeros(1, bool), seq_len)

    @cached_property
    def tokens(self) -> FloatColumn:
        """Tokens of a micro-batch on one context-parallel rank; what a model's own length leaves unequal is filled up."""
        return self.micro_batch_size * (padded(self.seq_len, self) / self.cp)

    @property
    def document_len(self) -> float:
        """Tokens of a document that is packed into a sequence."""
        return self.seq_len / self.documents

    @cached_property
    def norm_tokens(self) -> FloatColumn:
        """Tokens of the regions between tensor-parallel products: divided by tp under sequence parallelism."""
        return self.tokens / np.where(self.sequence_parallel, self.tp, 1)

    @property
    def gathers_rows(self) -> BoolColumn:
        """Whether the ranks that share an expert have tokens of their own, which all of them need.

        Without sequence parallelism the ranks of a tensor-parallel group have the same tokens.
        """
        whole_rows: BoolColumn = self.sequence_parallel | (self.tp == 1)
        return whole_rows


ONE = MicroBatch.single()  # one token on one rank


def padded(seq_len: int, shape: MicroBatch | Layouts) -> IntColumn:
    """Tokens of a sequence that its ranks share evenly, ``(n,)``: a multiple of 2 · cp under context parallelism, and of cp · tp under
    sequence parallelism. A length that a workload says has to be one; one that a model says is filled up to it."""
    unit = shape.cp * np.where(shape.sequence_parallel, shape.tp, 1)
    unit = np.where((shape.cp > 1) & (unit // shape.cp % 2 == 1), 2 * unit, unit)
    length: IntColumn = -(-seq_len // unit) * unit
    return length


@dataclass(frozen=True)
class MatMul:
    """C[m, n] = A[m, k] · B[k, n] of one rank, weights in B, ``batch`` of them in one kernel; each ``(n_shapes,)``.

    ``sixteen_bit``: whether it stays in 16 bits where the others run in fp8. ``second``: the share of it that selective recomputation of
    every other product repeats, the second, fourth and so on of a layer: one here may stand for several, as that of queries, keys and
    values. The last one's output no gradient needs.
    ``modules``: Hugging Face's modules that it stands for, with the share of its columns that each gives; ``megatron``: Megatron Core's one
    module. ``cut``: what ranks that share the product divide among them, the columns of B, or its rows; None: each has all of it.
    ``routed``: whether they are ranks that share an expert. ``frozen``: it has no weight gradient. ``adapts``: the product that an
    adapter's stands beside. ``in_turn``: how many such kernels run one after the other, each of which needs what the last one gave, on the
    same weights; their weight gradients are one product over the rows of all. ``convolved``: it is a convolution of few channels, which
    libraries run without tensor cores.
    """

    name: str
    m: FloatColumn
    n: FloatColumn
    k: FloatColumn
    batch: FloatColumn | float = 1.0
    sixteen_bit: bool = False
    second: FloatColumn | float = 0.5
    modules: tuple[tuple[str, FloatColumn | float], ...] = ()
    megatron: str = ""
    cut: Literal["columns", "rows"] | None = "columns"
    routed: bool = False
    frozen: bool = False
    adapts: str = ""
    in_turn: FloatColumn | float = 1.0
    convolved: bool = False

    @property
    def flops(self) -> FloatColumn:
        """FLOP of the forward product, ``(n_shapes,)``."""
        return 2.0 * self.in_turn * self.batch * self.m * self.n * self.k


def mean_context(window: int | None, seq_len: float) -> float:
    """Keys that a query of a causal sequence, or of a document packed into one, sees on average, the diagonal's half a key left out: half
    of them without a window.

    With a window of w, the first w queries see w / 2 on average and the others w.
    """
    seen = min(window or seq_len, seq_len)
    return seen - seen**2 / (2 * seq_len)
