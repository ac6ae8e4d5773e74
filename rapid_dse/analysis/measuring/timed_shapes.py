"""What is timed on a chip of one's own: products by precision, attention, streams and small kernels, sizes of all-reduces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

PRODUCT_ROWS = (1, 16, 64, 256, 1024, 4096, 8192, 16384)  # tokens: a decode step's to a micro-batch's
# Widths in and out of layers of 8 and 70 billion parameters, whole and of a rank of 8; of squares; of a head.
PRODUCT_WIDTHS = (
    (4096, 4096),
    (6144, 4096),
    (28672, 4096),
    (4096, 14336),
    (8192, 8192),
    (3584, 8192),
    (8192, 3584),
    (1024, 8192),
    (2048, 512),
)
PRECISIONS = ("bf16", "fp16", "fp8", "tf32", "fp32")
FEWER = {"fp16": 4, "tf32": 4, "fp32": 4}  # of these precisions, each fourth shape
ATTENTION_LENGTHS = (1024, 2048, 4096, 8192)
ATTENTION_TOKENS = 16384  # of a batch of sequences
STREAM_ROWS, STREAM_COLUMNS = (1, 256, 1024, 4096, 16384), (2048, 8192)
STREAMS = ("add", "copy", "gelu", "mul", "relu")
REDUCED_BYTES = tuple(2**power for power in range(12, 31, 2))


@dataclass(frozen=True)
class TimedProduct:
    """A matrix product: C[m, n] = A[m, k] B[k, n] in a precision."""

    m: int
    n: int
    k: int
    precision: str


@dataclass(frozen=True)
class TimedAttention:
    """Causal attention of ``batch`` sequences with heads that share keys."""

    batch: int
    seq_len: int
    heads: int
    kv_heads: int
    head_dim: int


def products(small: bool = False) -> Iterator[TimedProduct]:
    """The products, the most telling first; ``small``: those that a CPU has done in a second."""
    rows, widths = ((16, 64, 512), ((256, 256), (1024, 1024))) if small else (PRODUCT_ROWS, PRODUCT_WIDTHS)
    for precision in ("fp32", "bf16") if small else PRECISIONS:
        shapes = [(m, n, k) for n, k in widths for m in rows]
        for m, n, k in shapes[:: 1 if small else FEWER.get(precision, 1)]:
            yield TimedProduct(m, n, k, precision)


def attentions(small: bool = False) -> Iterator[TimedAttention]:
    """The attention kernels, forward and backward."""
    for head_dim, heads, kv_heads in ((64, 2, 1),) if small else ((128, 32, 8), (64, 32, 8), (128, 16, 16)):
        for length in (128, 256) if small else ATTENTION_LENGTHS:
            yield TimedAttention(1 if small else ATTENTION_TOKENS // length, length, heads, kv_heads, head_dim)


def streams(small: bool = False) -> Iterator[tuple[str, int, int]]:
    """Small kernels: name, rows and columns."""
    for name in STREAMS:
        for rows in (64, 256) if small else STREAM_ROWS:
            for columns in (256,) if small else STREAM_COLUMNS:
                yield name, rows, columns
