"""RAPID-LLM's model YAML (``model_param``) as an option of ``model``, with what it says of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rapid_dse.config.units import shortened
from rapid_dse.imports.reader import Imported, Reader, Rules

KIND = "RAPID-LLM model YAML"
ROOT = "model_param"
_GELU = {"mlp_type": "gelu", "norm": "layernorm", "position_embedding": "learned", "linear_bias": True, "attention_bias": True}
_QK_NORM, _UNDROPPED = {"qk_norm": True}, {"dropout": False}
TYPES: dict[str, Mapping[str, Any]] = {  # model_type: what it fixes of a layer
    "gpt": _GELU,
    "llama": _UNDROPPED,
    "deepseek_v3": _UNDROPPED,
    "glm4_moe": _UNDROPPED | _QK_NORM | {"attention_bias": True},
    "vit": _GELU,
    "vit_dinov3": _GELU | {"position_embedding": "rope", "num_prefix_tokens": 5, "layer_scale": True},  # DINOv3: arXiv 2508.10104
}
LATENT = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
KINDS = ("LLM", "VIT", "GEMM", "LSTM")  # modes
GATES = 4  # of long short-term memory
LEFT: Rules = (
    (r".*attention_tile_size", "tiles follow from the sizes of the chip's memories"),
    (r".*use_cache|.*disable_embedding_unembedding", "how RAPID-LLM runs it"),
    (r".*\.vision\.(num_|in_)?channels", "a patch holds 3 channels"),
    (r".*\.vision\.num_classes", "model_param.vocab_size says how many classes there are"),
)


def read_model(tree: Mapping[str, Any], name: str, source: str) -> Imported:
    """The file as an option of ``model``; its batch, sequence and kind of run are under ``run``.

    Raises:
        ValueError: one line: a mode or a kind of layer that is not modelled, a key that is missing or wrong.
    """
    reader = Reader(tree, source)
    mode = str(reader.take(f"{ROOT}.mode", "the kind of model", "LLM")).upper()
    if mode not in KINDS:
        raise ValueError(f"{source}: {ROOT}.mode={mode}: not known; allowed: {', '.join(KINDS)}")
    model = _gemm(reader) if mode == "GEMM" else _lstm(reader) if mode == "LSTM" else _transformer(reader, mode)
    run = _run(reader, mode)
    reader.leave_rest(LEFT)
    return reader.imported("model", f"{KIND} ({mode})", {"name": name, **model, "run": run})


def _gemm(reader: Reader) -> dict[str, Any]:
    return {"kind": "gemm"} | {size.lower(): reader.whole(f"{ROOT}.{size}", f"model.{size.lower()}") for size in ("M", "N", "K")}


def _lstm(reader: Reader) -> dict[str, Any]:
    """A stack of long short-term memory; its dimensions are named as a model's of layers are."""
    model: dict[str, Any] = {"kind": "lstm"}
    for theirs, ours in (("hidden_dim", "hidden_size"), ("num_layers", "num_hidden_layers"), ("vocab_size", "vocab_size")):
        model[ours] = reader.whole(f"{ROOT}.{theirs}", f"model.{ours}", 0 if ours == "vocab_size" else None)
    for key, allowed, what in (("projection", 0, "a projection of the state"), ("num_gates", GATES, "another number of gates")):
        value = reader.whole(f"{ROOT}.{key}", "what a layer is", allowed)
        if value != allowed:
            raise ValueError(f"{reader.name}: {ROOT}.{key}={value}: LSTMs with {what} are not modelled; allowed: {allowed}")
    for key in ("num_non_linear", "num_add", "num_pointwise"):
        reader.leave(f"{ROOT}.{key}", "what a step moves beside its products follows from the gates")
    return model


def _transformer(reader: Reader, mode: str) -> dict[str, Any]:
    """Dimensions of a model of layers."""
    kind = str(reader.take(f"{ROOT}.model_type", "what a layer is", "gpt" if mode != "VIT" else "vit")).lower()
    if kind not in TYPES:
        raise ValueError(f"{reader.name}: {ROOT}.model_type={kind}: not known; allowed: {', '.join(TYPES)}")
    model: dict[str, Any] = dict(TYPES[kind])
    for theirs, ours in (
        ("hidden_dim", "hidden_size"),
        ("num_layers", "num_hidden_layers"),
        ("intermediate_size", "intermediate_size"),
        ("vocab_size", "num_classes" if mode == "VIT" else "vocab_size"),
    ):
        model[ours] = reader.whole(f"{ROOT}.{theirs}", f"model.{ours}")
    if mode == "VIT":
        reader.leave(f"{ROOT}.tied_embeddings", "no table of tokens")
    else:
        model["tie_word_embeddings"] = bool(reader.take(f"{ROOT}.tied_embeddings", "model.tie_word_embeddings", False))
    model |= _attention(reader) | _experts(reader, model["num_hidden_layers"])
    if mode == "VIT":
        for key in ("image_size", "patch_size"):
            model[key] = reader.whole(f"{ROOT}.vision.{key}", f"model.{key}")
        model["kind"] = "vit"
    return model


def _attention(reader: Reader) -> dict[str, Any]:
    part = f"{ROOT}.attention"
    kind = str(reader.take(f"{part}.attention_type", "what attention is", "mha")).lower()
    if kind not in ("mha", "gqa", "mla"):
        raise ValueError(f"{reader.name}: {part}.attention_type={kind}: a kind that is not modelled; allowed: mha, gqa, mla")
    heads = reader.whole(f"{part}.num_heads", "model.num_attention_heads")
    heads_of_model: dict[str, Any] = {"num_attention_heads": heads, "num_key_value_heads": heads}
    if kind == "gqa":
        heads_of_model["num_key_value_heads"] = reader.whole(f"{part}.kv_heads", "model.num_key_value_heads")
    else:
        reader.leave(f"{part}.kv_heads", f"{kind}: each head has its own keys and values")
    if kind == "mla":
        heads_of_model |= {key: reader.whole(f"{part}.{key}", f"model.{key}") for key in LATENT}
    elif reader.take(f"{part}.head_dim", "model.head_dim") is not None:
        heads_of_model["head_dim"] = reader.whole(f"{part}.head_dim", "model.head_dim")
    return heads_of_model


def _experts(reader: Reader, layers: int) -> dict[str, Any]:
    part = f"{ROOT}.moe"
    experts = reader.whole(f"{part}.num_experts", "model.num_experts", 1)
    if experts <= 1:
        reader.leave(part, "num_experts is 1: a dense model")
        return {}
    experts_of_model: dict[str, Any] = {"num_experts": experts}
    for theirs, ours in (
        ("top_k", "num_experts_per_tok"),
        ("moe_intermediate_size", "moe_intermediate_size"),
        ("n_shared_experts", "n_shared_experts"),
        ("first_k_dense_replace", "first_k_dense_replace"),
    ):
        experts_of_model[ours] = reader.whole(f"{part}.{theirs}", f"model.{ours}", 0)
    every = reader.whole(f"{part}.moe_layer_freq", "model.first_k_dense_replace", 1)
    if every > 1:
        raise ValueError(
            f"{reader.name}: {part}.moe_layer_freq={every}: dense layers between layers of experts are not modelled; allowed: 1"
        )
    if every == 0 or experts_of_model["first_k_dense_replace"] >= layers:
        raise ValueError(f"{reader.name}: {part}: has {experts} experts and no layer that holds them; allowed: num_experts: 1")
    return experts_of_model


def _run(reader: Reader, mode: str) -> dict[str, Any]:
    """What the file says of the run: ``run_values.py`` joins it with the hardware's."""
    kind = str(reader.take(f"{ROOT}.run_type", "workload.kind", "training")).lower()
    if kind not in ("training", "inference"):
        raise ValueError(f"{reader.name}: {ROOT}.run_type={kind}: not known; allowed: training, inference")
    workload: dict[str, Any] = {"kind": kind, "mode": mode}
    if mode == "GEMM":
        backward = reader.take(f"{ROOT}.backward", "workload.kind", True)
        workload["kind"] = "training" if backward else "inference"
        axis = reader.take(f"{ROOT}.gemm_shard_axis", "parallel.gemm_sharding")
        workload["gemm_sharding"] = "column" if axis == "col" else axis
        reader.leave(ROOT, "a matrix product has none of it")
        return workload
    batch = "workload.global_batch_size" if kind == "training" else "workload.batch_size"
    named = "global_batch_size" if reader.get(f"{ROOT}.global_batch_size") is not None or mode != "LSTM" else "batch_size"
    workload["batch"] = reader.whole(f"{ROOT}.{named}", batch, 1)
    workload["accumulation"] = max(1, reader.whole(f"{ROOT}.gradient_accumulation_steps", "parallel.micro_batch_size", 1))
    if mode in ("LLM", "LSTM"):
        sequence = "workload.seq_len" if kind == "training" else "workload.prompt_len, with decode_len"
        workload["seq_len"] = reader.whole(f"{ROOT}.seq_len", sequence)
    if kind == "inference" and mode == "LLM":
        workload["decode_len"] = reader.whole(f"{ROOT}.decode_len", "workload.decode_len", 0)
    else:
        reader.leave(f"{ROOT}.decode_len", "nothing is decoded")
    fused = reader.take(f"{ROOT}.attention.use_flashattention", "software.attention")
    if fused is not None:
        workload["attention"] = "flash" if fused else "unfused"
    imbalance = reader.get(f"{ROOT}.moe.expert_imbalance_factor")
    if imbalance is not None and f"{ROOT}.moe.expert_imbalance_factor" not in reader.not_taken:
        workload["expert_imbalance"] = reader.number(f"{ROOT}.moe.expert_imbalance_factor", "workload.expert_imbalance")
    elif reader.whole(f"{ROOT}.moe.num_experts", "model.num_experts", 1) > 1:
        workload["expert_imbalance"] = 1.0  # RAPID-LLM's own default
    _require_whole_batch(workload, reader)
    return workload


def _require_whole_batch(run: Mapping[str, Any], reader: Reader) -> None:
    if run["batch"] < 1:
        raise ValueError(f"{reader.name}: {ROOT}.global_batch_size={shortened(run['batch'])}: expected at least 1")
