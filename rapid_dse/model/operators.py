"""What work a transformer is: its matrix products, attention and elementwise passes as shapes, on columns.

A column here has one entry a distinct micro-batch shape: ``(tp, cp, micro_batch_size, sequence_parallel)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.model import Model
from rapid_dse.layouts import BoolColumn, IntColumn

FloatColumn = NDArray[np.float64]

VOCAB_MULTIPLE = 128  # Megatron's make-vocab-size-divisible-by


@dataclass(frozen=True)
class MicroBatch:
    """Distinct micro-batch shapes; every column ``(n_shapes,)``. ``seq_len`` is the whole sequence's."""

    tp: IntColumn
    cp: IntColumn
    micro_batch_size: IntColumn
    sequence_parallel: BoolColumn
    seq_len: int

    @property
    def tokens(self) -> FloatColumn:
        """Tokens of a micro-batch on one context-parallel rank."""
        return self.micro_batch_size * (self.seq_len / self.cp)

    @property
    def norm_tokens(self) -> FloatColumn:
        """Tokens of the regions between tensor-parallel products: divided by tp under sequence parallelism."""
        return self.tokens / np.where(self.sequence_parallel, self.tp, 1)


@dataclass(frozen=True)
class MatMul:
    """C[m, n] = A[m, k] · B[k, n] of one rank, weights in B; each ``(n_shapes,)``."""

    name: str
    m: FloatColumn
    n: FloatColumn
    k: FloatColumn


def padded_vocab(model: Model, tp: IntColumn) -> IntColumn:
    """Rows of the embedding table, padded to a multiple of 128 · tp, ``(n,)``."""
    multiple = VOCAB_MULTIPLE * tp
    rows: IntColumn = -(-model.vocab_size // multiple) * multiple
    return rows


def local_kv_heads(model: Model, tp: IntColumn) -> FloatColumn:
    """Key-value heads a tensor-parallel rank holds; replicated where tp exceeds them, ``(n,)``."""
    return np.maximum(1.0, model.num_key_value_heads / tp)


def mlp_projections(model: Model) -> int:
    """Matrices into the intermediate size: gate and up for SwiGLU, one otherwise."""
    return 2 if model.mlp_type == "swiglu" else 1


def layer_matmuls(model: Model, shape: MicroBatch) -> list[MatMul]:
    """The matrix products of one layer's forward pass on one rank."""
    head = model.attention_head_dim
    heads = model.num_attention_heads / shape.tp
    tokens = shape.tokens
    hidden = np.full_like(tokens, model.hidden_size)
    wide = model.intermediate_size / shape.tp
    return [
        MatMul("qkv", tokens, (heads + 2 * local_kv_heads(model, shape.tp)) * head, hidden),
        MatMul("attention_output", tokens, hidden, heads * head),
        MatMul("mlp_up", tokens, mlp_projections(model) * wide, hidden),
        MatMul("mlp_down", tokens, hidden, wide),
    ]


def head_matmul(model: Model, shape: MicroBatch) -> MatMul:
    """The product with the vocabulary."""
    tokens = shape.tokens
    return MatMul("head", tokens, padded_vocab(model, shape.tp) / shape.tp, np.full_like(tokens, model.hidden_size))


def matrix_parameters(model: Model) -> float:
    """Parameters of the matrices that multiply every token: layers and head, look-up excluded."""
    head = model.attention_head_dim
    attention = model.hidden_size * head * (2 * model.num_attention_heads + 2 * model.num_key_value_heads)
    mlp = model.hidden_size * model.intermediate_size * (mlp_projections(model) + 1)
    return float(model.num_hidden_layers * (attention + mlp) + model.hidden_size * model.vocab_size)


def model_flops_per_token(model: Model, seq_len: int) -> float:
    """Forward and backward FLOP a token that count for MFU: 6 a matrix parameter, and causal attention at half.

    Source: Chowdhery et al., PaLM (arXiv 2204.02311), appendix B, with the causal half counted.
    """
    width = model.num_attention_heads * model.attention_head_dim
    return 6.0 * matrix_parameters(model) + 12.0 * model.num_hidden_layers * width * mean_context(model, seq_len)


def mean_context(model: Model, seq_len: int) -> float:
    """Keys that a query of a causal sequence sees on average, the diagonal's half a key left out: half of them without a window.

    With a window of w, the first w queries see w / 2 on average and the others w.
    """
    window = min(model.sliding_window or seq_len, seq_len)
    return window - window**2 / (2 * seq_len)
