"""What every operator model answers: how long an operator runs on one chip.

All arguments broadcast as numpy arrays (n,); every answer is float64 seconds of device time, (n,): the kernel's own ramp
(``hw.kernel_latency``) is inside, the host's launch is not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rapid_dse.config.hardware import PRECISION_BYTES, Hardware
from rapid_dse.config.software import LibraryGeneration

FloatArray = NDArray[np.float64]
Direction = Literal["forward", "backward"]
AttentionKernel = Literal["flash1", "flash2", "flash3", "cudnn", "triton", "ck", "efficient", "fused_softmax", "torch_softmax", "unfused"]
UNFUSED: tuple[str, ...] = ("fused_softmax", "torch_softmax", "unfused")
# Clocks of an SM for a parameter of AdamW: root, division, corrections and conversions, whatever the bytes. PyTorch's fused kernel on an
# H200: 5.1 ps a parameter with 14 bytes each (all states of 16 bits), from 268 million to 1.07 billion of them; with 28 bytes (32 bits)
# HBM sets the pace.
UPDATE_CLOCKS = 1.25


@dataclass(frozen=True)
class AttentionSizes:
    """Sizes of an attention, which broadcast to one shape (n,): ``heads`` query heads over ``kv_heads`` key heads.

    Attributes:
        v_head_dim: of a value; None: as ``head_dim``.
        window: keys that a query sees at most; None: all of them.
        causal: the last query sees the last key (bottom-right aligned), earlier ones fewer.
    """

    batch: ArrayLike
    heads: ArrayLike
    kv_heads: ArrayLike
    seq_q: ArrayLike
    seq_kv: ArrayLike
    head_dim: ArrayLike
    v_head_dim: ArrayLike | None = None
    window: ArrayLike | None = None
    causal: bool = True

    def columns(self) -> AttentionShape:
        """The sizes as columns; ``ValueError`` for one below 1, and for kv_heads above heads."""
        names = ("batch", "heads", "kv_heads", "seq_q", "seq_kv", "head_dim")
        shape = AttentionShape(
            **broadcast(
                **{name: getattr(self, name) for name in names},
                v_head_dim=self.head_dim if self.v_head_dim is None else self.v_head_dim,
                window=np.inf if self.window is None else self.window,
            ),
            causal=self.causal,
        )
        if np.any(shape.kv_heads > shape.heads):
            raise ValueError(f"kv_heads={shape.kv_heads.max():g} is above heads; allowed: a divisor of heads")
        return shape


@dataclass(frozen=True)
class AttentionShape:
    """``AttentionSizes`` as columns of one shape, (n,) each; ``window`` is infinite where there is none."""

    batch: FloatArray
    heads: FloatArray
    kv_heads: FloatArray
    seq_q: FloatArray
    seq_kv: FloatArray
    head_dim: FloatArray
    v_head_dim: FloatArray
    window: FloatArray
    causal: bool

    @cached_property
    def keys_per_query(self) -> FloatArray:
        """Keys that a query sees on average, exactly counted, (n,)."""
        if not self.causal:
            return np.minimum(self.seq_kv, self.window)
        queries = np.minimum(self.seq_q, self.seq_kv)  # queries before the first key see nothing
        seen = queries * (self.seq_kv - queries) + queries * (queries + 1) / 2
        # With a window w, query i loses what lies more than w keys behind it.
        hidden = np.maximum(self.seq_kv - self.window, 0)
        lost_rows = np.minimum(hidden, queries)
        seen = seen - lost_rows * (2 * hidden - lost_rows + 1) / 2
        return np.asarray(seen / self.seq_q, dtype=np.float64)

    @property
    def multiply_flops(self) -> FloatArray:
        """FLOP of the two forward products over the keys that are seen, (n,)."""
        scores = self.batch * self.heads * self.seq_q * self.keys_per_query
        return np.asarray(2 * scores * (self.head_dim + self.v_head_dim), dtype=np.float64)


@dataclass(frozen=True)
class AttentionCall:
    """What runs attention: the direction, the kernel and the generation of its library, the precision, and whether it drops scores."""

    direction: Direction = "forward"
    kernel: str = "flash2"
    precision: str = "bf16"
    dropout: bool = False
    generation: LibraryGeneration = "current"

    def check(self) -> None:
        """``ValueError`` for a direction or a kernel that there is not."""
        if self.direction not in get_args(Direction):
            raise ValueError(f"direction={self.direction!r}; allowed: {', '.join(get_args(Direction))}")
        if self.kernel not in get_args(AttentionKernel):
            raise ValueError(f"kernel={self.kernel!r}; allowed: {', '.join(get_args(AttentionKernel))}")


@dataclass(frozen=True)
class GroupedCall:
    """How one kernel runs many products: ``ragged``: which dimension differs from group to group, the rows ``m``, or of a weight gradient
    the depth ``k``; ``even``: it does not; ``accumulate``: as of ``OperatorModel.gemm``."""

    ragged: Literal["m", "k"] = "m"
    even: bool = False
    precision: str = "bf16"
    accumulate: bool = False


class OperatorModel(ABC):
    """Prices operators on one chip."""

    def __init__(self, hw: Hardware) -> None:
        self.hw = hw

    def gemm(
        self,
        m: ArrayLike,
        n: ArrayLike,
        k: ArrayLike,
        *,
        batch: ArrayLike = 1,
        precision: str = "bf16",
        accumulate: bool = False,
    ) -> FloatArray:
        """Seconds of C[m, n] = A[m, k] B[k, n], ``batch`` times, (n,).

        The forward product of a linear layer is (tokens, out, in), its input gradient (tokens, in, out), its weight gradient
        (out, in, tokens). ``accumulate``: C += A B with C in fp32, as in gradient accumulation fused into the weight gradient.

        Raises:
            ValueError: a dimension below 1, or a precision that the chip lacks.
        """
        self.hw.peak_flops(precision)
        columns = broadcast(m=m, n=n, k=k, batch=batch)
        return self._gemm(**columns, precision=precision, accumulate=accumulate)

    def grouped(self, m: ArrayLike, n: ArrayLike, k: ArrayLike, groups: ArrayLike, call: GroupedCall | None = None) -> FloatArray:
        """Seconds of ``groups`` products C[m, n] = A[m, k] B[k, n] in one kernel, (n,); ``m``, or ``k`` where ``call.ragged`` says so, is
        the mean of the groups, or of all of them the size where they are ``even``.

        A chip without a kernel of that kind runs them as one batch.

        Raises:
            ValueError: as ``gemm``.
        """
        call = call or GroupedCall()
        self.hw.peak_flops(call.precision)
        columns = broadcast(m=m, n=n, k=k, groups=groups)
        shape = np.stack([columns[name].ravel() for name in ("m", "n", "k", "groups")])
        return self._grouped(shape, call).reshape(columns["m"].shape)

    def attention(self, sizes: AttentionSizes, call: AttentionCall | None = None) -> FloatArray:
        """Seconds of scaled dot-product attention in one direction, (n,).

        Raises:
            ValueError: a dimension below 1, kv_heads above heads, an unknown kernel or direction, a kernel or a precision that the chip
                lacks.
        """
        call = call or AttentionCall()
        self.hw.peak_flops(call.precision)
        call.check()
        shape = sizes.columns()
        if call.kernel in UNFUSED:
            return self._unfused(shape, call)
        if call.kernel not in self.hw.attention_kernels:
            built = ", ".join((*self.hw.attention_kernels, *UNFUSED))
            raise ValueError(f"kernel={call.kernel!r} is not built for {self.hw.name}; allowed: {built}")
        return self._flash(shape, call)

    def update(self, parameters: ArrayLike, bytes_a_parameter: ArrayLike) -> FloatArray:
        """Seconds of the optimizer's step over so many ``parameters`` that moves ``bytes_a_parameter`` bytes of HBM for each, (n,): as
        long as streaming takes, or the arithmetic of Adam (``UPDATE_CLOCKS``)."""
        count = np.asarray(parameters, dtype=np.float64)
        arithmetic = count * (UPDATE_CLOCKS / (self.hw.sms * self.hw.clock)) + self.hw.kernel_latency
        hbm_bytes = count * np.asarray(bytes_a_parameter, dtype=np.float64)
        return np.asarray(np.maximum(self.elementwise(hbm_bytes), arithmetic), dtype=np.float64)

    @abstractmethod
    def elementwise(self, bytes_moved: ArrayLike) -> FloatArray:
        """Seconds of one streaming kernel (norm, activation, softmax, optimizer) that reads and writes ``bytes_moved`` bytes, (n,)."""

    @abstractmethod
    def _gemm(self, m: FloatArray, n: FloatArray, k: FloatArray, batch: FloatArray, *, precision: str, accumulate: bool) -> FloatArray: ...

    def _grouped(self, shape: FloatArray, call: GroupedCall) -> FloatArray:
        return self._gemm(*shape, precision=call.precision, accumulate=call.accumulate)

    @abstractmethod
    def _flash(self, shape: AttentionShape, call: AttentionCall) -> FloatArray: ...

    def _unfused(self, shape: AttentionShape, call: AttentionCall) -> FloatArray:
        """Two batched products forward, four backward, the passes over the scores between them, and copies of operands."""
        direction, precision = call.direction, call.precision
        count = shape.batch * shape.heads
        products = [(shape.seq_q, shape.seq_kv, shape.head_dim), (shape.seq_q, shape.v_head_dim, shape.seq_kv)]
        if direction == "backward":
            products = [
                (shape.seq_q, shape.seq_kv, shape.v_head_dim),  # dP = dO Vᵀ
                (shape.seq_kv, shape.v_head_dim, shape.seq_q),  # dV = Pᵀ dO
                (shape.seq_q, shape.head_dim, shape.seq_kv),  # dQ = dS K
                (shape.seq_kv, shape.head_dim, shape.seq_q),  # dK = dSᵀ Q
            ]
        total = np.asarray(sum(self.gemm(m, n, k, batch=count, precision=precision) for m, n, k in products), dtype=np.float64)
        width = PRECISION_BYTES[precision]
        for share in score_passes(direction, call.kernel, causal=shape.causal, dropout=call.dropout):
            total = total + self.elementwise(count * shape.seq_q * shape.seq_kv * width * share)
        copied = count * shape.seq_q * shape.head_dim * width
        return total + self.elementwise(copied * OPERAND_PASSES[call.kernel, direction])


# Reads and writes of an operand's size (tokens × heads × head_dim) around the products: PyTorch's rearrangement of q, k and the
# output into batched matrices, and of their gradients; Megatron's layout needs that of the output alone.
OPERAND_PASSES = {
    ("unfused", "forward"): 6.0,
    ("unfused", "backward"): 14.0,
    ("fused_softmax", "forward"): 2.0,
    ("fused_softmax", "backward"): 2.0,
    ("torch_softmax", "forward"): 2.0,
    ("torch_softmax", "backward"): 2.0,
}


def score_passes(direction: Direction, kernel: str, *, causal: bool, dropout: bool) -> tuple[float, ...]:
    """Reads and writes of the score matrix between the products, one number a kernel, in units of the matrix's size.

    Fused (Megatron's scaled masked softmax): one kernel reads and writes forward, one reads two and writes one backward. Plain
    PyTorch adds the mask as a kernel of its own (reads scores and mask, writes), and its softmax reads a row once more
    (backward: both operands). Where Megatron runs PyTorch's kernels in the fused one's place (``torch_softmax``), they work in fp32, twice
    as wide: copied, scaled, masked (a mask of bytes beside it), softmax, copied back. Dropout reads, writes, and keeps a mask of a byte
    (half of a 16-bit score).
    """
    again = 0.0 if kernel == "fused_softmax" else 1.0
    drop = (2.5,) if dropout else ()
    if kernel == "torch_softmax":
        mask = (4.5,) if causal else ()
        softmax = 2 * (2.0 + again) if direction == "forward" else 2 * (3.0 + 2 * again)
        return (3.0, 4.0, *mask, softmax, 3.0, *drop)
    if direction == "backward":
        return (3.0 + 2 * again, *drop)
    mask = (3.0,) if causal and kernel == "unfused" else ()
    return (2.0 + again, *mask, *drop)


def broadcast(**dimensions: Any) -> dict[str, FloatArray]:
    """The dimensions by name as float64 arrays of one shape; ``ValueError`` names one that is below 1."""
    arrays = {name: np.asarray(value, dtype=np.float64) for name, value in dimensions.items()}
    for name, array in arrays.items():
        if not (array >= 1).all():
            raise ValueError(f"{name}={np.min(array):g}; allowed: at least 1")
    shapes = {array.shape for array in arrays.values()} - {()}
    if len(shapes) > 1:
        return dict(zip(arrays, np.broadcast_arrays(*arrays.values()), strict=True))
    # columns of one length beside plain numbers: ten times as fast
    shape = next(iter(shapes), ())
    return {name: array if array.shape == shape else np.full(shape, array) for name, array in arrays.items()}
