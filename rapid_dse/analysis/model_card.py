"""What a model is in a few figures: parameters, those that a token passes through, and what a token leaves in the KV cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rapid_dse.config.model import Model
from rapid_dse.model.parameters import count

CACHE_BYTES = 2  # of a number in the cache, 16 bits


@dataclass(frozen=True)
class ModelCard:
    """Figures of a model.

    Attributes:
        name: the model's.
        parameters: all, weights and not bytes.
        active_parameters: those that one token passes through: of the routed experts only those that it is sent to.
        kv_bytes_per_token: what a token leaves in the KV caches of all layers, 16 bits a number, bytes; a window lets old tokens go.
    """

    name: str
    parameters: int
    active_parameters: int
    kv_bytes_per_token: int

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        return asdict(self)


def card(model: Model) -> ModelCard:
    """The figures of a model."""
    counts = count(model)
    return ModelCard(model.name, counts.total, counts.active, model.num_hidden_layers * _cached(model) * CACHE_BYTES)


def _cached(model: Model) -> int:
    """Numbers that a token leaves in one layer's cache: a key and a value a head, or the latent with its rotary part."""
    if not model.of_kind.decodes:
        return 0
    if model.kv_lora_rank:
        return model.kv_lora_rank + (model.qk_rope_head_dim or 0)
    return 2 * model.num_key_value_heads * model.attention_head_dim
