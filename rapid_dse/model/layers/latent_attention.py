"""Multi-head latent attention, DeepSeek-V2 (arXiv 2405.04434, section 2.1): parameters, products, and what a token leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapid_dse.config.software import Software
from rapid_dse.model.layers.attention import OUTPUT, Attention, dropped
from rapid_dse.model.layers.eager_kernels import complex_rotary, complex_rotation
from rapid_dse.model.layers.part import CoreAttention, Counted, ForwardStep, PartParameters, SmallKernel, Tensor, norm_parameters
from rapid_dse.model.shapes import FloatColumn, MatMul, MicroBatch

# What eager kernels cost of a tensor in passes over it at streaming speed, one reads or writes it once. Rotation: its chain of products,
# negations and joins (measured alone on an H200 at 0.07 of that speed, of two passes). Joining along the innermost axis: read and written
# at 0.9 TB/s there (CatArrayBatchedCopy in steps of Llama 8B), where sums of tensors stream at 4.2.
EAGER_ROTARY = 28.0
EAGER_JOIN = 9.2


@dataclass(frozen=True)
class LatentAttention(Attention):
    """Queries, keys and values by way of narrow latents, which have norms of their own; its projections carry no biases."""

    @property
    def _queries(self) -> int:
        """Width of a head's query: the part without position, and the rotary one."""
        return (self.model.qk_nope_head_dim or 0) + (self.model.qk_rope_head_dim or 0)

    @property
    def _value(self) -> int:
        return self.model.v_head_dim or self.model.attention_head_dim

    @property
    def _latent_width(self) -> int:
        """Numbers of the latent of keys and values, and of the rotary key."""
        return (self.model.kv_lora_rank or 0) + (self.model.qk_rope_head_dim or 0)

    def parameters(self, shape: MicroBatch) -> PartParameters:
        """Projections down to latents are whole on each rank, what spreads them over heads is divided by tp."""
        model = self.model
        latents = (model.q_lora_rank or 0) + (model.kv_lora_rank or 0)
        products = sum(product.n * product.k for product in self.products(shape))
        return PartParameters(products=products, norms=norm_parameters(model, model.hidden_size) + latents)

    def products(self, shape: MicroBatch) -> list[MatMul]:
        model, tokens, heads = self.model, shape.tokens, self._heads(shape.tp)

        def column(width: float) -> FloatColumn:
            return np.full_like(tokens, width)

        hidden, latent, queries = column(model.hidden_size), model.kv_lora_rank or 0, model.q_lora_rank or 0
        wide = heads * self._queries
        up, megatron = ("q_b_proj", "linear_q_up_proj") if queries else ("q_proj", "linear_q_proj")
        return [
            *([_down("query_down", (tokens, column(queries), hidden), "q_a_proj", "linear_q_down_proj")] if queries else []),
            MatMul("queries", tokens, wide, column(queries) if queries else hidden, modules=((up, 1.0),), megatron=megatron),
            _down("key_value_down", (tokens, column(self._latent_width), hidden), "kv_a_proj_with_mqa", "linear_kv_down_proj"),
            MatMul(
                "keys_values",
                *(tokens, heads * ((model.qk_nope_head_dim or 0) + self._value), column(latent)),
                modules=(("kv_b_proj", 1.0),),
                megatron="linear_kv_up_proj",
            ),
            MatMul("attention_output", tokens, hidden, heads * self._value, modules=OUTPUT, megatron="linear_proj", cut="rows"),
        ]

    def attention(self, shape: MicroBatch) -> CoreAttention:
        """Keys and values of all heads are made from the latents, so that each head has its own; values are narrower than keys."""
        heads = self._heads(shape.tp)
        return CoreAttention(heads, heads, self._queries, None, self._value)

    def small_kernels(self, shape: MicroBatch, software: Software) -> list[SmallKernel]:
        """Beside norm and residual the norms of the latents; queries and keys are put together of their parts, the rotary ones turned: by
        kernels of eager PyTorch where rotation is not fused, which backward put the gradients of what was split together."""
        model, mask = self.model, 0.5 * self.model.drops_out(software.kernels.dropout)
        stream = shape.norm_tokens * model.hidden_size
        latents = shape.tokens * ((model.q_lora_rank or 0) + (model.kv_lora_rank or 0))
        heads = shape.tokens * self._heads(shape.tp)
        joined = SmallKernel("joined", 4 * heads * self._queries, 4 * heads * self._queries)
        if not software.kernels.fused_rotary:
            turned = EAGER_ROTARY * heads * (model.qk_rope_head_dim or 0)
            apart = self._queries + (model.qk_nope_head_dim or 0) + self._value
            passes = turned + EAGER_JOIN * 2 * heads * self._queries, turned + EAGER_JOIN * heads * apart
            joined = SmallKernel("joined", *passes, counted=Counted((0.0, 0.0), (0.0, 0.0)))
        turned_apart = []
        if complex_rotary(model, software):  # the rotary key is one for all heads
            turned_apart = [complex_rotation("joined", (heads + shape.tokens) * (model.qk_rope_head_dim or 0))]
        return [
            SmallKernel("attention_norm", 2 * stream, 3 * stream),
            SmallKernel("latent_norms", 2 * latents, 3 * latents),
            joined,
            *turned_apart,
            SmallKernel("attention_residual", stream * (3 + mask), stream * (2 + mask)),
        ]

    def projected(self) -> tuple[ForwardStep, ...]:
        queries = (
            ForwardStep("query_down", "projected_input", ("query_latent",)),
            ForwardStep("latent_norms", "query_latent", ("query_latent_normed",)),
            ForwardStep("queries", "query_latent_normed", ("queries",)),
        )
        return (
            ForwardStep("attention_norm", "attention_norm_input", ("latents_input",)),
            ForwardStep("attention_gather", "latents_input", ("projected_input",)),
            *(queries if self.model.q_lora_rank else (ForwardStep("queries", "projected_input", ("queries",)),)),
            ForwardStep("key_value_down", "projected_input", ("key_value_latent",)),
            ForwardStep("latent_norms", "key_value_latent", ("key_value_latent_normed",)),
            ForwardStep("keys_values", "key_value_latent_normed", ("keys_values_plain",)),
            ForwardStep("joined", "keys_values_plain", ("keys", "values")),
        )

    def tensors(self, shape: MicroBatch, software: Software) -> list[Tensor]:
        """As of ``Attention``, with the latents, and what the kernel reads of queries, keys and values."""
        model, tokens, heads = self.model, shape.tokens, self._heads(shape.tp)
        stream, scores = shape.norm_tokens * model.hidden_size, tokens * heads * float(shape.seq_len)
        queries, latent = tokens * (model.q_lora_rank or 0), tokens * (model.kv_lora_rank or 0)
        plain = tokens * heads * ((model.qk_nope_head_dim or 0) + self._value)
        return [
            Tensor("attention_norm_input", stream),
            Tensor("latents_input", stream, "input"),
            Tensor("query_latent", queries, product=True),
            Tensor("query_latent_normed", queries, "input"),
            Tensor("key_value_latent", tokens * self._latent_width, product=True),
            Tensor("key_value_latent_normed", latent, "input"),
            Tensor("queries", tokens * heads * self._queries, product=True),
            Tensor("keys_values_plain", plain, product=True, kept=False),
            Tensor("keys", tokens * heads * self._queries),
            Tensor("values", tokens * heads * self._value),
            Tensor("log_sum_exp", tokens * heads, "fp32"),
            Tensor("softmax", scores, core=True),
            Tensor("core_output", tokens * heads * self._value, "core_input"),
            Tensor("attention_output", stream, product=True, kept=False, first=0.0),
            *dropped(model, software, scores, stream),
        ]

    def ring(self, shape: MicroBatch) -> FloatColumn:
        """Keys and values of all heads, as they are made from the latents."""
        return shape.tokens * self._heads(shape.tp) * (self._queries + self._value)

    def token_state(self, shape: MicroBatch) -> FloatColumn:
        """The latent and the rotary key, whole on each rank."""
        return np.full(len(shape.tp), float(self._latent_width))


def _down(name: str, shape: tuple[FloatColumn, FloatColumn, FloatColumn], module: str, megatron: str) -> MatMul:
    """A projection down to a latent, whole on each rank, of ``shape`` m, n, k."""
    return MatMul(name, *shape, modules=((module, 1.0),), megatron=megatron, cut=None)


PART = LatentAttention
