"""The matrix products of a layer of an engine, as shapes: attention cut over tp, MLPs over the whole stage, experts over etp and ep.

All columns are ``(n,)``; ``tokens`` are those of a pass on an attention rank (a rank of ``attention_dp`` · cp has its own).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.remembered import remembered
from rapid_dse.config.model import Model
from rapid_dse.model.layers.attention import local_kv_heads
from rapid_dse.model.layers.embedding import padded_vocab
from rapid_dse.model.layers.mlp import mlp_products
from rapid_dse.model.shapes import MatMul
from rapid_dse.parallel.engines import Degrees

FloatColumn = NDArray[np.float64]
IntColumn = NDArray[np.int64]

# Mean of the largest of 1, 2, 4, … 1,024 normal deviates.
LARGEST = (0.0, 0.564, 1.029, 1.424, 1.766, 2.070, 2.344, 2.594, 2.824, 3.038, 3.240)


# How evenly tokens of one batch choose experts: an expert's share of them is drawn from a beta distribution of this first parameter
# (infinite: all alike). With 2 steps of Qwen3-235B under TensorRT-LLM, Qwen3-30B under vLLM and DeepSeek-V3 under SGLang grow with the
# batch as measured, from 4 sequences to 128; were all alike, those of 16 and 32 would take up to a quarter longer.
EVENNESS = 2


@dataclass(frozen=True)
class Product:
    """A product and what it stands for: ``part`` is attention, mlp, experts or head; ``weights``: its second operand is stored, and is
    narrow where the precision is."""

    matmul: MatMul
    part: str
    weights: bool = True
    narrow: bool = True


def attention_products(model: Model, cut: Degrees, tokens: FloatColumn, absorbed: bool) -> list[Product]:
    """The projections around attention of one layer on one rank.

    Args:
        absorbed: of latent attention: queries and outputs pass through the latents' up-projections (decoding); else keys and values of all
            tokens are made from the latents (prefill).
    """
    hidden, heads = np.full_like(tokens, model.hidden_size), model.num_attention_heads / cut.tp
    if model.kv_lora_rank:
        return _latent(model, heads, tokens, absorbed)
    head = model.attention_head_dim
    wide = (heads + 2 * local_kv_heads(model, cut.tp)) * head
    matmuls = [MatMul("qkv", tokens, wide, hidden), MatMul("attention_output", tokens, hidden, heads * head)]
    return [Product(matmul, "attention") for matmul in matmuls]


def _latent(model: Model, heads: FloatColumn, tokens: FloatColumn, absorbed: bool) -> list[Product]:
    """DeepSeek-V2 (arXiv 2405.04434), section 2.1; the down-projections are whole on every rank."""

    def column(value: float) -> FloatColumn:
        return np.full_like(tokens, value)

    latent, queries = model.kv_lora_rank or 0, model.q_lora_rank or 0
    plain, rotary = model.qk_nope_head_dim or 0, model.qk_rope_head_dim or 0
    value, hidden = model.v_head_dim or model.attention_head_dim, column(model.hidden_size)
    into = heads * (plain + rotary)
    products = [Product(MatMul("down", tokens, column(queries + latent + rotary), hidden), "attention")]
    if queries:
        products.append(Product(MatMul("queries", tokens, into, column(queries)), "attention"))
    else:
        products[0] = Product(MatMul("down", tokens, into + latent + rotary, hidden), "attention")
    if absorbed:
        products.append(Product(MatMul("absorb_keys", tokens, column(latent), column(plain), heads), "attention", narrow=False))
        products.append(Product(MatMul("absorb_values", tokens, column(value), column(latent), heads), "attention", narrow=False))
    else:
        products.append(Product(MatMul("keys_values", tokens, heads * (plain + value), column(latent)), "attention"))
    return [*products, Product(MatMul("attention_output", tokens, hidden, heads * value), "attention")]


def dense_products(model: Model, cut: Degrees, tokens: FloatColumn, share: FloatColumn | float = 1.0) -> list[Product]:
    """The MLP of a dense layer: over all GPUs of the stage, whose attention ranks put their tokens together; beside experts, over tp.

    Args:
        share: tokens of an attention rank on average over ``tokens``, the most that one has.
    """
    if model.num_experts:
        return _mlp("mlp", model, tokens, model.intermediate_size / (cut.tp * cut.cp), part="mlp")
    return _mlp("mlp", model, np.maximum(1.0, tokens * share * (cut.attention_dp * cut.cp)), model.intermediate_size / cut.wide, part="mlp")


def expert_products(
    model: Model, cut: Degrees, tokens: FloatColumn, share: FloatColumn | float = 1.0, imbalance: float | None = None
) -> list[Product]:
    """Router, shared experts, and the rank's routed experts as one grouped product over those that some token has chosen.

    Args:
        share: tokens of an attention rank on average over ``tokens``, the most that one has.
        imbalance: as of ``busiest_rank``.
    """
    engine = np.maximum(1.0, tokens * share * (cut.attention_dp * cut.cp))
    touched, load = busiest_rank(model, engine, cut.ep, imbalance)
    rows = np.maximum(1.0, load / touched)
    experts, hidden = np.full_like(tokens, model.num_experts), np.full_like(tokens, model.hidden_size)
    router = Product(MatMul("router", tokens, experts, hidden, sixteen_bit=True), "experts", narrow=False)
    routed = _mlp("expert", model, rows, model.moe_intermediate_size / cut.etp, touched, part="experts")
    if not model.n_shared_experts:
        return [router, *routed]
    alone = cut.attention_dp > 1  # each attention rank runs the shared experts on its own tokens
    wide = model.n_shared_experts * model.moe_intermediate_size / np.where(alone, cut.tp, cut.wide)
    return [router, *_mlp("shared", model, np.where(alone, tokens, engine), wide, part="experts"), *routed]


def touched_experts(model: Model, tokens: FloatColumn) -> FloatColumn:
    """Experts of a layer that at least one of ``tokens`` is sent to, on average, at least 1.

    A token chooses an expert with the chance p, of beta distribution with the mean k/E and the parameters a = ``EVENNESS`` and
    b = a (E/k − 1). All miss it with the mean of (1 − p)^tokens, for a = 2 b (b + 1) / (b + tokens) / (b + tokens + 1).
    """
    share = model.num_experts_per_tok / model.num_experts
    if share >= 1:
        return np.full_like(tokens, model.num_experts)
    rest = EVENNESS * (1.0 / share - 1.0)
    missed = np.ones_like(tokens)
    for step in range(EVENNESS):
        missed = missed * (rest + step) / (rest + step + tokens)
    return np.maximum(1.0, model.num_experts * (1.0 - missed))


def busiest_rank(model: Model, tokens: FloatColumn, ep: IntColumn, imbalance: float | None = None) -> tuple[FloatColumn, FloatColumn]:
    """Experts that some token has chosen, and tokens that were sent, on the expert-parallel rank that has the most of them.

    Tokens choose one by one, so that a rank's count has about the variance of its mean, and what its experts are chosen for differs from
    the mean by a variance of 1 / ``EVENNESS`` over their number; the largest of ``ep`` such counts lies ``LARGEST`` deviations above it.

    Args:
        imbalance: tokens sent to that rank over the mean, where it is known (``workload.expert_imbalance``).
    """
    experts_a_rank, deviations = model.num_experts / ep, np.interp(np.log2(ep), np.arange(len(LARGEST)), LARGEST)
    mean = touched_experts(model, tokens) / ep
    touched = np.minimum(experts_a_rank, mean + deviations * np.sqrt(mean * np.maximum(0.0, 1.0 - mean / experts_a_rank)))
    sent = tokens * model.num_experts_per_tok / ep
    uneven = (1.0 - model.num_experts_per_tok / model.num_experts) / (EVENNESS * experts_a_rank)
    variance = (sent + sent * sent * uneven) * (1.0 - 1.0 / ep)
    most = sent + deviations * np.sqrt(variance) if imbalance is None else sent * np.where(ep > 1, imbalance, 1.0)
    load = np.minimum(tokens * np.minimum(model.num_experts_per_tok, experts_a_rank), most)
    return np.maximum(1.0, touched), load


def head_product(model: Model, cut: Degrees, tokens: FloatColumn) -> Product:
    """The product with the vocabulary, 16 bits."""
    wide = padded_vocab(model, cut.tp) / cut.tp
    return Product(MatMul("head", tokens, wide, np.full_like(tokens, model.hidden_size), sixteen_bit=True), "head", narrow=False)


def _mlp(
    name: str, model: Model, tokens: FloatColumn, wide: FloatColumn, experts: FloatColumn | None = None, *, part: str
) -> list[Product]:
    matmuls = mlp_products(name, model, tokens, wide, 1.0 if experts is None else experts, experts is not None)
    return [Product(matmul, part) for matmul in matmuls]


@remembered(16)
def dense_layers(model: Model) -> int:
    """Layers without experts."""
    return sum(not model.has_experts(layer) for layer in range(model.num_hidden_layers))
