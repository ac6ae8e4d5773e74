"""The names of what layers can be made of: what ``model.layer_types`` takes, and the parts that other keys of a model choose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

# By name the module of model/layers/ that holds it: what mixes tokens, in the words of Hugging Face's ``layer_types``.
LAYER_TYPE_MODULES = {
    "full_attention": "attention",
    "sliding_attention": "sliding_attention",
}
# Parts that other keys choose: ``kv_lora_rank``, ``intermediate_size``, ``num_experts``.
PART_MODULES = LAYER_TYPE_MODULES | {"latent_attention": "latent_attention", "mlp": "mlp", "experts": "experts"}
# Parts of models of other kinds (``model_kinds.py``).
PART_MODULES |= {"bidirectional_attention": "bidirectional_attention", "matmul": "matmul"}
PART_MODULES |= {"recurrent": "recurrent", "recurrent_input": "recurrent_input"}
PART_MODULES |= {"next_token": "next_token"}  # before a layer that predicts one token more (num_nextn_predict_layers)
LAYER_TYPES = tuple(LAYER_TYPE_MODULES)
# Kinds that published models have and nothing here prices, with what they are.
MISSING_TYPES = {
    "linear_attention": "linear attention (gated delta networks)",
    "mamba": "state-space layers",
    "chunked_attention": "attention in chunks (a sliding_window as long as a chunk stands for it)",
}

if TYPE_CHECKING:
    LayerType = str
else:
    LayerType = Literal[LAYER_TYPES]
