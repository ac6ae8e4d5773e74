"""The modules that low-rank adapters (LoRA) may stand beside, by the names that ``workload.lora_targets`` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

ALL_LINEAR = "all-linear"  # PEFT's word for every linear module of the layers; the router and the head are none of them
# Hugging Face's modules, as PEFT's target_modules names them, those of latent attention last. One may be a part of a product only: what
# projects to queries, keys and values is one product here.
HUGGING_FACE_MODULES = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
)
# Megatron Core's, as Megatron Bridge's and NeMo's LoRA names them: an adapter for each whole product.
MEGATRON_MODULES = (
    *("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"),
    *("linear_q_proj", "linear_q_down_proj", "linear_q_up_proj", "linear_kv_down_proj", "linear_kv_up_proj"),
)
TARGETS = (ALL_LINEAR, *HUGGING_FACE_MODULES, *MEGATRON_MODULES)

if TYPE_CHECKING:
    LoraTarget = str
else:
    LoraTarget = Literal[TARGETS]
