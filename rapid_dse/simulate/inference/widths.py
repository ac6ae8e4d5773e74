"""Bytes of what inference stores and moves, by precision: weights of products, activations, the KV cache."""

from __future__ import annotations

from rapid_dse.config.model import Model
from rapid_dse.config.scenario import Scenario
from rapid_dse.simulate.inference.products import Product

# A number of a stored weight with its share of scales: NVFP4 has one of 8 bits for 16 numbers; int4 one of 16 bits for 128; int8 and fp8
# one for a row or a block, which is next to nothing.
WEIGHT_BYTES = {"fp32": 4.0, "tf32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp4": 0.5625, "int8": 1.0, "int4": 0.516}
CACHE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp4": 0.5625, "int8": 1.0, "int4": 0.516}
ACTIVATION = 2.0  # bytes of an activation between kernels
NARROW = ("fp8", "fp4", "int8", "int4")


def product_precision(scenario: Scenario, product: Product) -> str:
    """The precision in which a product's weights are stored.

    Embedding, head, router and the absorbed latents stay in 16 bits, and attention of mixtures of experts with 4-bit weights: so the
    checkpoints of GPT-OSS (MXFP4), Kimi K2 Thinking and K2.5 (int4) and DeepSeek-R1 (NVFP4).
    """
    precision = scenario.stored_precision
    if precision not in NARROW:
        return precision
    wide = scenario.model.num_experts and product.part == "attention" and precision in ("fp4", "int4")
    return scenario.hw.arithmetic("int8") if wide or not product.narrow else precision


def cache_precision(scenario: Scenario) -> str:
    """The precision of the KV cache: what ``workload.kv_precision`` says, or the framework's default."""
    given, precision = scenario.workload.kv_precision, scenario.workload.precision
    if given is not None:
        return given
    if precision in ("fp8", "fp4") and scenario.software.serving.fp8_cache:
        return "fp8"
    if precision in ("fp32", "tf32"):
        return "fp32"
    return scenario.hw.arithmetic("int8") if precision in NARROW else precision


def cache_numbers(model: Model) -> int:
    """Numbers that a token leaves in one layer's cache, of all heads: keys and values, or the latent and the rotary key."""
    if model.kv_lora_rank:
        return model.kv_lora_rank + (model.qk_rope_head_dim or 0)
    return 2 * model.num_key_value_heads * model.attention_head_dim


def cache_bytes_per_token(scenario: Scenario) -> float:
    """Bytes that a token leaves in the cache of the whole model."""
    model = scenario.model
    return model.num_hidden_layers * cache_numbers(model) * CACHE_BYTES[cache_precision(scenario)]
