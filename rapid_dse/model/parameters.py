"""How many parameters a model has, by the part that holds them."""

from __future__ import annotations

from dataclasses import dataclass

from rapid_dse.config.model import Model


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Parameters (weights, not bytes) of a model; the vocabulary is unpadded.

    ``attention``, ``norm``, ``mlp``, ``router``, ``shared_experts`` and ``expert`` are those of one layer; ``mlp`` is a dense layer's,
    ``router``, ``shared_experts`` and ``expert`` (one routed expert) are a mixture-of-experts layer's, zero in a dense model.
    """

    embedding: int
    positions: int
    attention: int
    norm: int
    mlp: int
    router: int
    shared_experts: int
    expert: int
    num_experts: int
    num_experts_per_tok: int
    dense_layers: int
    moe_layers: int
    final_norm: int
    head: int  # zero where the embedding is tied to it

    @property
    def layer(self) -> int:
        """Parameters of one dense layer."""
        return self.attention + self.norm + self.mlp

    @property
    def moe_layer(self) -> int:
        """Parameters of one mixture-of-experts layer, all experts included."""
        return self._moe_layer(self.num_experts)

    @property
    def total(self) -> int:
        """Parameters of the whole model."""
        return self._outside + self.dense_layers * self.layer + self.moe_layers * self.moe_layer

    @property
    def active(self) -> int:
        """Parameters that one token passes through: of the routed experts only those it is sent to."""
        return self._outside + self.dense_layers * self.layer + self.moe_layers * self._moe_layer(self.num_experts_per_tok)

    @property
    def _outside(self) -> int:
        return self.embedding + self.positions + self.final_norm + self.head

    def _moe_layer(self, experts: int) -> int:
        return self.attention + self.norm + self.router + self.shared_experts + experts * self.expert


def count(model: Model, positions: int = 2048) -> ParameterCounts:
    """The parameters of ``model``.

    Args:
        model: dense or mixture of experts, with multi-head, grouped-query or latent attention.
        positions: rows of the learned position table, tokens; of no effect where the positions are rotary.
    """
    hidden = model.hidden_size
    vocabulary = model.vocab_size * hidden
    moe_layers = max(model.num_hidden_layers - model.first_k_dense_replace, 0) if model.num_experts else 0
    expert = mlp(model, model.moe_intermediate_size) if moe_layers else 0
    return ParameterCounts(
        embedding=vocabulary,
        positions=positions * hidden if model.position_embedding == "learned" else 0,
        attention=attention(model),
        norm=layer_norms(model),
        mlp=mlp(model, model.intermediate_size),
        router=model.num_experts * hidden if moe_layers else 0,
        shared_experts=model.n_shared_experts * expert,
        expert=expert,
        num_experts=model.num_experts,
        num_experts_per_tok=model.num_experts_per_tok,
        dense_layers=model.num_hidden_layers - moe_layers,
        moe_layers=moe_layers,
        final_norm=_norm(model, hidden),
        head=0 if model.tie_word_embeddings else vocabulary,
    )


def attention(model: Model) -> int:
    """Parameters of one layer's attention projections, the norms inside it left to ``layer_norms``.

    ``attention_bias`` puts biases on the query, key and value projections, ``linear_bias`` on all four.
    """
    if model.kv_lora_rank:
        return _latent_attention(model)
    hidden, head = model.hidden_size, model.attention_head_dim
    queries = model.num_attention_heads * head
    keys_values = 2 * model.num_key_value_heads * head
    biases = queries + keys_values if model.attention_bias or model.linear_bias else 0
    biases += hidden if model.linear_bias else 0
    return hidden * (queries + keys_values) + queries * hidden + biases


def _latent_attention(model: Model) -> int:
    # Multi-head latent attention, DeepSeek-V2 (arXiv 2405.04434) section 2.1; its projections carry no biases.
    hidden, heads = model.hidden_size, model.num_attention_heads
    latent, query_latent = model.kv_lora_rank or 0, model.q_lora_rank or 0
    plain, rotary = model.qk_nope_head_dim or 0, model.qk_rope_head_dim or 0
    value = model.v_head_dim or model.attention_head_dim
    queries = heads * (plain + rotary)
    query = query_latent * (hidden + queries) if query_latent else hidden * queries
    return query + hidden * (latent + rotary) + latent * heads * (plain + value) + heads * value * hidden


def mlp(model: Model, intermediate: int) -> int:
    """Parameters of one MLP (or expert) that is ``intermediate`` wide: three matrices for SwiGLU, else two."""
    inward = 2 if model.mlp_type == "swiglu" else 1
    biases = inward * intermediate + model.hidden_size if model.linear_bias else 0
    return (inward + 1) * model.hidden_size * intermediate + biases


def layer_norms(model: Model) -> int:
    """Parameters of one layer's norms: before attention, before the MLP, of queries and keys, and of the latents."""
    inside = 2 * _norm(model, model.attention_head_dim) if model.qk_norm else 0
    latents = (model.q_lora_rank or 0) + model.kv_lora_rank if model.kv_lora_rank else 0
    return 2 * _norm(model, model.hidden_size) + inside + latents


def _norm(model: Model, width: int) -> int:
    return 2 * width if model.norm == "layernorm" else width  # layernorm has a bias beside its scale
