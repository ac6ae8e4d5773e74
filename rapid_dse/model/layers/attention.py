"""Multi-head and grouped-query attention, over the whole sequence or a sliding window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapid_dse.config.model import Model
from rapid_dse.config.software import Software
from rapid_dse.model.layers.eager_kernels import (
    complex_rotary,
    complex_rotation,
    joined_gradients,
    layer_norm,
    residual_sum,
    summed_gradients,
)
from rapid_dse.model.layers.part import (
    CoreAttention,
    Counted,
    Exchanged,
    ForwardStep,
    Part,
    PartParameters,
    SmallKernel,
    Tensor,
    norm_parameters,
)
from rapid_dse.model.shapes import ONE, FloatColumn, MatMul, MicroBatch
from rapid_dse.parallel.layouts import IntColumn


def local_kv_heads(model: Model, tp: IntColumn) -> FloatColumn:
    """Key-value heads a tensor-parallel rank holds; replicated where tp exceeds them, ``(n,)``."""
    return np.maximum(1.0, model.num_key_value_heads / tp)


def dropped(model: Model, software: Software, scores: FloatColumn, stream: FloatColumn) -> list[Tensor]:
    """What dropout of attention's weights and of its output keeps: unfused the weights that are left and their mask, and the mask of the
    output, a byte an element."""
    if not model.drops_out(software.kernels.dropout):
        return []
    return [
        Tensor("softmax_dropped", scores, core=True),
        Tensor("softmax_mask", scores, "byte", core=True),
        Tensor("attention_mask", stream, "byte"),
    ]


OUTPUT = (("o_proj", 1.0),)  # of Hugging Face's modules, what projects back


@dataclass(frozen=True)
class Attention(Part):
    """Norm, projections to queries, keys and values, the attention kernel, and the projection back; ``window`` in tokens, None: all;
    ``causal``: whether tokens see only what is before them."""

    window: int | None = None
    causal: bool = True

    def operations(self) -> float:
        """Norm, kernel, projection back and sum; projections to queries, keys and values (one where images are seen, as timm has it); a
        rotation of queries and of keys by two products, a negation, a concatenation and a sum each."""
        return 4.0 + (3.0 if self.causal else 1.0) + 10.0 * (self.model.position_embedding == "rope")

    def gradient_operations(self, software: Software) -> float:
        """Sums of biases' gradients; of a split projection a join and a copy."""
        sums = bool(np.any(self.parameters(ONE).biases)) + float(self.model.linear_bias)
        return software.kernels.gradient_sums * (sums + 2.0 * (not self.causal))

    def _heads(self, tp: IntColumn) -> FloatColumn:
        return self.model.num_attention_heads / tp

    def parameters(self, shape: MicroBatch) -> PartParameters:
        """``attention_bias`` puts biases on the query, key and value projections, ``linear_bias`` on all four; ``qkv_bias`` wins."""
        model, head = self.model, self.model.attention_head_dim
        inward = head * (self._heads(shape.tp) + 2 * local_kv_heads(model, shape.tp))
        biased = (model.attention_bias or model.linear_bias) if model.qkv_bias is None else model.qkv_bias
        return PartParameters(
            products=model.hidden_size * (inward + head * self._heads(shape.tp)),
            biases=inward if biased else 0.0,
            norms=norm_parameters(model, model.hidden_size) + (2 * norm_parameters(model, head) if model.qk_norm else 0),
            added=model.hidden_size * (model.linear_bias + model.layer_scale),
        )

    def products(self, shape: MicroBatch) -> list[MatMul]:
        head, heads, tokens = self.model.attention_head_dim, self._heads(shape.tp), shape.tokens
        hidden, keys = np.full_like(tokens, self.model.hidden_size), local_kv_heads(self.model, shape.tp)
        # queries, keys, values and the output are the layer's first four products
        every = heads + 2 * keys
        modules = (("q_proj", heads / every), ("k_proj", keys / every), ("v_proj", keys / every))
        return [
            MatMul("qkv", tokens, every * head, hidden, second=keys / every, modules=modules, megatron="linear_qkv"),
            MatMul("attention_output", tokens, hidden, heads * head, second=1.0, modules=OUTPUT, megatron="linear_proj", cut="rows"),
        ]

    def attention(self, shape: MicroBatch) -> CoreAttention:
        model = self.model
        heads = self._heads(shape.tp), local_kv_heads(model, shape.tp)
        return CoreAttention(*heads, model.attention_head_dim, self.window, causal=self.causal)

    def small_kernels(self, shape: MicroBatch, software: Software) -> list[SmallKernel]:
        """A norm reads and writes (backward reads two and writes one), a residual sum reads two and writes one; rotary embedding reads
        and writes queries and keys (in complex numbers six kernels do), and norms of those like any other."""
        model = self.model
        stream = shape.norm_tokens * model.hidden_size
        heads, keys = self._heads(shape.tp), local_kv_heads(model, shape.tp)
        turned, every = shape.tokens * model.attention_head_dim * (heads + keys), heads + 2 * keys
        rotary, normed = turned * (model.position_embedding == "rope"), turned * model.qk_norm
        return [
            layer_norm(model, software, "attention_norm", stream),
            complex_rotation("rotary", rotary)
            if complex_rotary(model, software)
            else SmallKernel("rotary", 2 * (rotary + normed), 2 * rotary + 3 * normed),
            residual_sum(model, software, "attention_residual", stream),
            *summed_gradients(software, "attention_sums", shape, model.hidden_size, 2.0),  # of keys and of values beside queries
            *self._bias_gradients(shape, software),
            *([] if self.causal else joined_gradients(software, "projections_joined", shape.tokens * model.attention_head_dim * every)),
        ]

    def _bias_gradients(self, shape: MicroBatch, software: Software) -> list[SmallKernel]:
        """Sums of the gradients of biased projections over the rows, where they are kernels of their own."""
        model, biased = self.model, self.parameters(shape)
        if not software.kernels.gradient_sums or not (np.any(biased.biases) or model.linear_bias):
            return []
        read = shape.tokens * (biased.biases + model.hidden_size * model.linear_bias)
        return [SmallKernel("attention_bias_gradients", 0.0, read, counted=Counted((0.0, 0.0), (0.0, 1.0 + model.linear_bias)))]

    def steps(self) -> tuple[ForwardStep, ...]:
        projected = self.projected()
        return (
            *projected,
            ForwardStep("core", projected[-1].makes[0], ("core_output", "log_sum_exp", "softmax", "softmax_dropped", "softmax_mask")),
            ForwardStep("attention_output", "core_output", ("attention_output",)),
            ForwardStep("attention_scatter", "attention_output", ("attention_scattered",)),
            ForwardStep("attention_residual", "attention_scattered", ("mlp_norm_input", "attention_mask")),
        )

    def projected(self) -> tuple[ForwardStep, ...]:
        """What makes queries, keys and values."""
        return (
            ForwardStep("attention_norm", "attention_norm_input", ("qkv_input",)),
            ForwardStep("attention_gather", "qkv_input", ("qkv_gathered",)),
            ForwardStep("qkv", "qkv_gathered", ("qkv_projected",)),
            ForwardStep("rotary", "qkv_projected", ("qkv", "qkv_copies")),
        )

    def tensors(self, shape: MicroBatch, software: Software) -> list[Tensor]:
        """As counted in Korthikanti et al. (arXiv 2205.05198, section 4.1), generalised to grouped queries and to flash attention, which
        keeps its output and a log-sum-exp in place of the scores (Dao, arXiv 2307.08691, section 2.3)."""
        model, heads = self.model, self._heads(shape.tp)
        stream = shape.norm_tokens * model.hidden_size
        queries, keys = (shape.tokens * count * model.attention_head_dim for count in (heads, local_kv_heads(model, shape.tp)))
        scores = shape.tokens * heads * float(shape.seq_len)
        # before their norms, which go backward from there, and before an unfused rotation
        copies = (model.qk_norm + (not software.kernels.fused_rotary)) * (queries + keys)
        return [
            Tensor("attention_norm_input", stream),
            Tensor("qkv_input", stream, "input"),
            Tensor("qkv", queries + 2 * keys, product=True, first=(queries + keys) / (queries + 2 * keys)),
            Tensor("qkv_copies", copies),
            Tensor("log_sum_exp", shape.tokens * heads, "fp32"),
            Tensor("softmax", scores, core=True),
            Tensor("core_output", queries, "core_input"),
            Tensor("attention_output", stream, product=True, kept=model.layer_scale, first=0.0),
            *dropped(model, software, scores, stream),
        ]

    def exchanged(self) -> tuple[Exchanged, ...]:
        return (Exchanged(),)

    def ring(self, shape: MicroBatch) -> FloatColumn:
        return 2 * shape.tokens * local_kv_heads(self.model, shape.tp) * self.model.attention_head_dim

    def token_state(self, shape: MicroBatch) -> FloatColumn:
        """A key and a value of each of the rank's heads."""
        return 2 * local_kv_heads(self.model, shape.tp) * self.model.attention_head_dim

    def remembered(self, tokens: int) -> int:
        return min(tokens, self.window or tokens)


PART = Attention
