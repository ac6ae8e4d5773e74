"""What work a transformer is: its matrix products, attention and elementwise passes as shapes, on columns.

A column here has one entry a distinct micro-batch shape: ``(tp, cp, ep, etp, micro_batch_size, sequence_parallel)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.model import Model
from rapid_dse.parallel.layouts import BoolColumn, IntColumn

FloatColumn = NDArray[np.float64]

VOCAB_MULTIPLE = 128  # Megatron's make-vocab-size-divisible-by


@dataclass(frozen=True)
class MicroBatch:
    """Distinct micro-batch shapes; every column ``(n_shapes,)``. ``seq_len`` is the whole sequence's; ``etp`` ranks share an expert."""

    tp: IntColumn
    cp: IntColumn
    ep: IntColumn
    etp: IntColumn
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

    def routed_rows(self, model: Model) -> FloatColumn:
        """Rows that a rank's experts see, spread evenly: of all tokens of the ranks that share them, one for each of a token's experts.

        Without sequence parallelism the ranks of a tensor-parallel group have the same tokens.
        """
        sharing = np.where(self.sequence_parallel | (self.tp == 1), self.etp, 1)
        return self.norm_tokens * model.num_experts_per_tok * sharing


@dataclass(frozen=True)
class MatMul:
    """C[m, n] = A[m, k] · B[k, n] of one rank, weights in B, ``batch`` of them in one kernel; each ``(n_shapes,)``.

    ``sixteen_bit``: whether it stays in 16 bits where the others run in fp8.
    """

    name: str
    m: FloatColumn
    n: FloatColumn
    k: FloatColumn
    batch: FloatColumn | float = 1.0
    sixteen_bit: bool = False

    @property
    def flops(self) -> FloatColumn:
        """FLOP of the forward product, ``(n_shapes,)``."""
        return 2.0 * self.batch * self.m * self.n * self.k


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
    attention = [
        MatMul("qkv", tokens, (heads + 2 * local_kv_heads(model, shape.tp)) * head, hidden),
        MatMul("attention_output", tokens, hidden, heads * head),
    ]
    if model.num_experts:
        return attention + expert_matmuls(model, shape)
    return attention + _mlp_matmuls("mlp", model, tokens, model.intermediate_size / shape.tp)


def _mlp_matmuls(name: str, model: Model, tokens: FloatColumn, wide: FloatColumn | float, batch: FloatColumn | float = 1.0) -> list[MatMul]:
    hidden = np.full_like(tokens, model.hidden_size)
    wide = np.broadcast_to(wide, tokens.shape)
    return [
        MatMul(f"{name}_up", tokens, mlp_projections(model) * wide, hidden, batch),
        MatMul(f"{name}_down", tokens, hidden, wide, batch),
    ]


def expert_matmuls(model: Model, shape: MicroBatch) -> list[MatMul]:
    """The products of a mixture-of-experts MLP on one rank: router, shared experts, and the rank's routed experts as one grouped product.

    Tokens are spread evenly over the experts, as balancing losses have it (Fedus et al., arXiv 2101.03961, section 2.2); each expert is
    split over ``etp`` ranks, which all see its tokens, shared experts over the tensor-parallel group.
    """
    mine = model.num_experts / shape.ep
    tokens, wide = shape.tokens, model.moe_intermediate_size / shape.etp
    local = shape.norm_tokens
    experts, hidden = np.full_like(local, model.num_experts), np.full_like(local, model.hidden_size)
    shared_wide = model.n_shared_experts * model.moe_intermediate_size / shape.tp
    shared = _mlp_matmuls("shared", model, tokens, shared_wide) if model.n_shared_experts else []
    routed = np.maximum(1.0, shape.routed_rows(model) / mine)
    return [MatMul("router", local, experts, hidden, sixteen_bit=True), *shared, *_mlp_matmuls("expert", model, routed, wide, mine)]


def head_matmul(model: Model, shape: MicroBatch) -> MatMul:
    """The product with the vocabulary."""
    tokens = shape.tokens
    return MatMul("head", tokens, padded_vocab(model, shape.tp) / shape.tp, np.full_like(tokens, model.hidden_size), sixteen_bit=True)


def matrix_parameters(model: Model) -> float:
    """Parameters of the matrices that multiply a token: layers and head, look-up excluded; of routed experts those it is sent to."""
    head = model.attention_head_dim
    attention = model.hidden_size * head * (2 * model.num_attention_heads + 2 * model.num_key_value_heads)
    router = model.hidden_size * model.num_experts
    mlp = model.hidden_size * mlp_width(model) * (mlp_projections(model) + 1)
    return float(model.num_hidden_layers * (attention + router + mlp) + model.hidden_size * model.vocab_size)


def wide_elements(model: Model, shape: MicroBatch) -> FloatColumn:
    """Elements of one of the MLP's projections on a rank, ``(n_shapes,)``: of routed and shared experts together."""
    if not model.num_experts:
        return shape.tokens * (model.intermediate_size / shape.tp)
    shared = shape.tokens * (model.n_shared_experts * model.moe_intermediate_size / shape.tp)
    return shape.routed_rows(model) * (model.moe_intermediate_size / shape.etp) + shared


def mlp_width(model: Model) -> int:
    """The intermediate size that a token sees: of its routed and shared experts together in a mixture of experts."""
    if model.num_experts:
        return (model.num_experts_per_tok + model.n_shared_experts) * model.moe_intermediate_size
    return model.intermediate_size


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
