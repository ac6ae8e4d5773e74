"""What the schema knows of a model; fields carry the names of Hugging Face's config.json."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from rapid_dse.config.effects import Only, Where
from rapid_dse.config.fields import Count, CountOrZero, Frozen

EXPERTS = Only(Where("model.num_experts"))


class Model(Frozen):
    """A transformer. ``head_dim`` null is hidden_size / num_attention_heads; ``num_experts`` 0 is a dense model.

    ``max_position_embeddings``: the longest sequence that it takes, tokens; a request's prompt and what it generates must fit; null: any.
    ``n_group`` groups of experts, of ``topk_group`` of which a token may have experts; null or 0: no groups.
    """

    name: str
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count | None = None
    intermediate_size: Count
    vocab_size: Count
    tie_word_embeddings: bool = False
    mlp_type: Literal["gelu", "relu2", "swiglu"] = "swiglu"
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    position_embedding: Literal["rope", "learned"] = "rope"
    linear_bias: bool = False
    attention_bias: bool = False
    qk_norm: bool = False
    sliding_window: Count | None = None
    max_position_embeddings: Annotated[Count | None, Only(Where("workload.kind", ("inference",)))] = None
    num_experts: CountOrZero = 0
    num_experts_per_tok: Annotated[CountOrZero, EXPERTS] = 0
    moe_intermediate_size: Annotated[CountOrZero, EXPERTS] = 0
    n_shared_experts: Annotated[CountOrZero, EXPERTS] = 0
    first_k_dense_replace: Annotated[CountOrZero, EXPERTS] = 0
    n_group: Annotated[CountOrZero | None, EXPERTS] = None
    topk_group: Annotated[CountOrZero | None, EXPERTS] = None
    q_lora_rank: CountOrZero | None = None
    kv_lora_rank: CountOrZero | None = None
    qk_nope_head_dim: CountOrZero | None = None
    qk_rope_head_dim: CountOrZero | None = None
    v_head_dim: CountOrZero | None = None

    @model_validator(mode="after")
    def _heads_divide(self) -> Model:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} does not divide num_attention_heads={self.num_attention_heads}"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size}, and head_dim is null"
            )
        for name in ("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            if getattr(self, name) and not self.kv_lora_rank:
                raise ValueError(f"{name}={getattr(self, name)} belongs to latent attention; allowed with kv_lora_rank alone, else null")
        if self.num_experts and not (self.num_experts_per_tok and self.moe_intermediate_size):
            raise ValueError(f"num_experts={self.num_experts} needs num_experts_per_tok and moe_intermediate_size, both at least 1")
        if self.num_experts and self.num_experts_per_tok > self.num_experts:
            raise ValueError(f"num_experts_per_tok={self.num_experts_per_tok} is above num_experts={self.num_experts}")
        return self

    @property
    def mlp_widths(self) -> dict[str, int]:
        """Widths of the MLPs that its layers have, by key: of dense layers, of one routed expert.

        Shared experts are ``n_shared_experts`` times as wide as a routed one: what divides that width divides theirs.
        """
        widths = {}
        if not self.num_experts or self.first_k_dense_replace:
            widths["intermediate_size"] = self.intermediate_size
        if self.num_experts:
            widths["moe_intermediate_size"] = self.moe_intermediate_size
        return widths

    @property
    def attention_head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads
