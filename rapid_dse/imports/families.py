"""Families of models on Hugging Face: what the code of each fixes, so that its config.json does not say it.

A family is a line. What a config.json says itself is read for all families alike (``hugging_face.FIELDS``); ``fixed`` are fields of the
schema that the family's code fixes, ``defaults`` what transformers takes where config.json leaves a key out, ``remarks`` what is priced
otherwise than the family has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FULL, SLIDING = "full_attention", "sliding_attention"

PARALLEL = "attention and MLP, which run side by side on one input, are priced one after the other"
POST_NORMS = "norms behind attention and MLP are not priced"
BIASES = "biases of the output projection and of experts are not counted"

_LLAMA = {"mlp_type": "swiglu", "norm": "rmsnorm", "position_embedding": "rope"}
_QWEN = _LLAMA | {"attention_bias": True}
_GEMMA = {"mlp_type": "geglu", "norm": "rmsnorm", "position_embedding": "rope", "tie_word_embeddings": True}
_DROPS = {"attn_pdrop": 0.1, "resid_pdrop": 0.1}
_GELU = {"mlp_type": "gelu", "norm": "layernorm", "linear_bias": True, "attention_bias": True}


@dataclass(frozen=True)
class Family:
    """What is particular to a ``model_type``."""

    fixed: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


_GEMMA_2_SIZES = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096}

FAMILIES: dict[str, Family] = {
    "llama": Family(_LLAMA),
    "mistral": Family(_LLAMA),
    "ministral": Family(_LLAMA),
    "mixtral": Family(_LLAMA),
    "mimo": Family(_QWEN),
    "qwen2": Family(_QWEN),
    "qwen2_moe": Family(_QWEN),
    "qwen3": Family(_LLAMA | {"qk_norm": True}),
    "qwen3_moe": Family(_LLAMA | {"qk_norm": True}),
    "qwen2_5_vl_text": Family(_QWEN),
    "qwen3_vl_text": Family(_LLAMA | {"qk_norm": True}),
    "qwen3_vl_moe_text": Family(_LLAMA | {"qk_norm": True}),
    "deepseek_v2": Family(_LLAMA),
    "deepseek_v3": Family(_LLAMA),
    "kimi_k2": Family(_LLAMA),
    "glm": Family(_LLAMA),
    "glm4": Family(_LLAMA, remarks=(POST_NORMS,)),
    "chatglm": Family(_LLAMA | {"attention_bias": True}),
    "glm4_moe": Family(_LLAMA),
    "gemma": Family(_GEMMA, {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256}),
    "gemma2": Family(_GEMMA, _GEMMA_2_SIZES | {"layer_types": [SLIDING, FULL]}, (POST_NORMS,)),
    "gemma3_text": Family(
        _GEMMA | {"qk_norm": True},
        _GEMMA_2_SIZES | {"layer_types": [*[SLIDING] * 5, FULL], "vocab_size": 262208},
        (POST_NORMS,),
    ),
    "phi": Family(_GELU | {"position_embedding": "rope"}, remarks=(PARALLEL,)),
    "phi3": Family(_LLAMA),
    "phimoe": Family(_LLAMA | {"norm": "layernorm"}),
    "gpt2": Family(_GELU | {"position_embedding": "learned"}, _DROPS | {"tie_word_embeddings": True}),
    "gpt_neox": Family(_GELU | {"position_embedding": "rope"}),
    "gpt_bigcode": Family(_GELU | {"position_embedding": "learned"}, _DROPS | {"tie_word_embeddings": True}),
    "starcoder2": Family(_GELU | {"position_embedding": "rope"}, {"tie_word_embeddings": True}),
    "falcon": Family({"mlp_type": "gelu", "norm": "layernorm", "position_embedding": "rope"}, {"tie_word_embeddings": True}),
    "gpt_oss": Family(_LLAMA, {"layer_types": [SLIDING, FULL]}, (BIASES,)),
    "minimax_m2": Family(_LLAMA | {"qk_norm": True}),
    "olmo": Family(_LLAMA | {"norm": "layernorm"}, remarks=("its norms have no parameters, and are counted with them",)),
    "olmo2": Family(_LLAMA | {"qk_norm": True}),
    "olmo3": Family(_LLAMA | {"qk_norm": True}, {"layer_types": [*[SLIDING] * 3, FULL]}),
    "olmoe": Family(_LLAMA | {"qk_norm": True}),
    "vit": Family(_GELU | {"kind": "vit", "position_embedding": "learned"}),
}
ALIASES = {
    "RefinedWeb": "falcon",
    "RefinedWebModel": "falcon",
    "gemma3": "gemma3_text",
    "mistral3": "mistral",
    "kimi_k25": "kimi_k2",
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen2",
}
