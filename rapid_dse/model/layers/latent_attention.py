"""Multi-head latent attention, DeepSeek-V2 (arXiv 2405.04434, section 2.1): parameters, products, and what a token leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapid_dse.model.layers.attention import Attention
from rapid_dse.model.layers.part import PartParameters, norm_parameters
from rapid_dse.model.shapes import FloatColumn, MatMul, MicroBatch


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
    def _left(self) -> int:
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
        narrow = [MatMul("query_down", tokens, column(queries), hidden)] if queries else []
        return [
            *narrow,
            MatMul("queries", tokens, wide, column(queries) if queries else hidden),
            MatMul("key_value_down", tokens, column(self._left), hidden),
            MatMul("keys_values", tokens, heads * ((model.qk_nope_head_dim or 0) + self._value), column(latent)),
            MatMul("attention_output", tokens, hidden, heads * self._value),
        ]

    def token_state(self, shape: MicroBatch) -> FloatColumn:
        """The latent and the rotary key, whole on each rank."""
        return np.full(len(shape.tp), float(self._left))


PART = LatentAttention
