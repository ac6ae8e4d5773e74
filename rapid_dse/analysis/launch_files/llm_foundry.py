"""LLM Foundry: the YAML of scripts/train (TrainConfig, MPTConfig; Composer's FSDPConfig)."""

from __future__ import annotations

from typing import Any

from rapid_dse.analysis.launch_files.field_table import (
    DropoutRates,
    Entry,
    FieldsRead,
    LaunchedRun,
    NamedChoice,
    SameNumber,
    TwoWays,
    constant,
)
from rapid_dse.analysis.launch_files.file_forms import YAML
from rapid_dse.analysis.launch_files.framework import LaunchFramework
from rapid_dse.analysis.launch_files.megatron_core import Guarded

_F, _M = "fsdp_config.", "model."
STRATEGIES = {3: ("FULL_SHARD", "HYBRID_SHARD"), 2: ("SHARD_GRAD_OP", "_HYBRID_SHARD_ZERO2"), 0: ("NO_SHARD", "NO_SHARD")}
PRECISIONS = {"bf16": "amp_bf16", "fp16": "amp_fp16", "fp8": "amp_fp8", "fp32": "fp32"}
# Its feed-forward layers: a matrix up and one down; with a gate, mptglu, of the activation that ffn_act_fn names.
_GATES = {"swiglu": "silu", "geglu": "gelu"}


def _write_sharding(run: LaunchedRun) -> dict[str, Any]:
    zero, hybrid = run["parallel.zero"], run.shards < run.replicas
    if zero not in STRATEGIES:
        return {}
    said: dict[str, Any] = {f"{_F}sharding_strategy": STRATEGIES[zero][hybrid], f"{_F}data_parallel_shard_degree": run.shards}
    return said | {f"{_F}data_parallel_replicate_degree": run.replicas // run.shards}


def _read_sharding(fields: FieldsRead) -> dict[str, Any]:
    word = str(fields.take(f"{_F}sharding_strategy", default="FULL_SHARD"))
    zero = next((stage for stage, words in STRATEGIES.items() if word in words), None)
    if zero is None:
        fields.notes.append(f"{_F}sharding_strategy={word}: taken as FULL_SHARD")
    shards, copies = (
        fields.number(f"{_F}data_parallel_shard_degree", default=-1),
        fields.number(f"{_F}data_parallel_replicate_degree", default=1),
    )
    said: dict[str, Any] = {"parallel.zero": 3 if zero is None else zero}
    if shards > 0:
        said["parallel.dp"] = shards * (copies or 1)
        said |= {"parallel.shard_group": shards} if (copies or 1) > 1 else {}
    elif "HYBRID" in word:
        fields.notes.append(f"{_F}sharding_strategy={word}: give parallel.shard_group=… (PyTorch takes a node's GPUs)")
    return said


def _write_batch(run: LaunchedRun) -> dict[str, Any]:
    return {
        "max_seq_len": run["workload.seq_len"],
        f"{_M}max_seq_len": run["workload.seq_len"],
        "global_train_batch_size": run["workload.global_batch_size"],
        "device_train_microbatch_size": run["parallel.micro_batch_size"],
    }


def _read_batch(fields: FieldsRead) -> dict[str, Any]:
    length, batch = fields.number("max_seq_len", f"{_M}max_seq_len"), fields.number("global_train_batch_size")
    said: dict[str, Any] = {"workload.seq_len": length} if length else {}
    if batch:
        said["workload.global_batch_size"] = batch
    if fields.fields.get("device_train_microbatch_size") == "auto":
        fields.take("device_train_microbatch_size")
        fields.notes.append("device_train_microbatch_size=auto: Composer takes the largest that fits; give parallel.micro_batch_size=…")
        return said
    micro = fields.number("device_train_microbatch_size")
    return said | ({"parallel.micro_batch_size": micro} if micro else {})


def _write_attention(run: LaunchedRun) -> dict[str, Any]:
    kv, heads, window = run["model.num_key_value_heads"], run["model.num_attention_heads"], run["model.sliding_window"]
    rotary = run["model.position_embedding"] == "rope"
    said: dict[str, Any] = {
        f"{_M}attn_config.attn_type": "multihead_attention" if kv == heads else "grouped_query_attention",
        f"{_M}attn_config.attn_impl": "torch" if run["software.attention"] == "unfused" else "flash",
        f"{_M}attn_config.qk_ln": run["model.qk_norm"],
        f"{_M}attn_config.rope": rotary,
        f"{_M}learned_pos_emb": not rotary,
    }
    said |= {f"{_M}attn_config.kv_n_heads": kv} if kv != heads else {}
    return said | ({f"{_M}attn_config.sliding_window_size": window} if window else {})


def _read_attention(fields: FieldsRead) -> dict[str, Any]:
    heads, kind = fields.keys.get("model.num_attention_heads"), fields.take(f"{_M}attn_config.attn_type", default="multihead_attention")
    kv = fields.number(f"{_M}attn_config.kv_n_heads", default=1 if kind == "multiquery_attention" else heads)
    window = fields.number(f"{_M}attn_config.sliding_window_size", default=-1)
    rotary, alibi = fields.flag(f"{_M}attn_config.rope"), fields.flag(f"{_M}attn_config.alibi")
    if fields.take(f"{_M}learned_pos_emb") is False and not rotary and not alibi:
        fields.notes.append(f"{_M}learned_pos_emb=false: a model without positions is taken as one with rotary ones")
    if alibi:
        fields.notes.append(f"{_M}attn_config.alibi=true: taken as rotary positions")
    learned = fields.fields.get(f"{_M}learned_pos_emb", True) is not False and not rotary and not alibi
    return {
        "model.num_key_value_heads": kv,
        "model.sliding_window": window if window > 0 else None,
        "model.qk_norm": fields.flag(f"{_M}attn_config.qk_ln", f"{_M}attn_config.qk_gn"),
        "model.position_embedding": "learned" if learned else "rope",
        "software.attention": "unfused" if fields.take(f"{_M}attn_config.attn_impl", default="flash") == "torch" else "flash",
    }


def _write_mlp(run: LaunchedRun) -> dict[str, Any]:
    kind, hidden, wide = run["model.mlp_type"], run["model.hidden_size"], run["model.intermediate_size"]
    ratio = wide / hidden
    said: dict[str, Any] = {
        f"{_M}expansion_ratio": int(ratio) if ratio.is_integer() else ratio,
        f"{_M}no_bias": not run["model.linear_bias"],
    }
    said |= {f"{_M}ffn_config.ffn_type": "mptglu" if kind in _GATES else "mptmlp", f"{_M}ffn_config.ffn_hidden_size": wide}
    said |= {f"{_M}ffn_config.ffn_act_fn.name": _GATES[kind]} if kind in _GATES else {}
    norm = {"layernorm": "low_precision_layernorm", "rmsnorm": "low_precision_rmsnorm"}[run["model.norm"]]
    return said | {f"{_M}norm_type": norm, f"{_M}tie_word_embeddings": run["model.tie_word_embeddings"]}


def _read_mlp(fields: FieldsRead) -> dict[str, Any]:
    hidden, ratio = fields.keys.get("model.hidden_size", 0), fields.real(f"{_M}expansion_ratio", default=4.0)
    kind, act = fields.take(f"{_M}ffn_config.ffn_type", default="mptmlp"), fields.take(f"{_M}ffn_config.ffn_act_fn.name", default="gelu")
    biased = not fields.flag(f"{_M}no_bias")
    gated = next((mine for mine, theirs in _GATES.items() if theirs == act), "geglu") if kind == "mptglu" else "gelu"
    return {
        "model.intermediate_size": fields.number(f"{_M}ffn_config.ffn_hidden_size", default=int(ratio * hidden)),
        "model.mlp_type": gated,
        "model.linear_bias": biased,
        "model.attention_bias": fields.take(f"{_M}attention_bias", default=biased),
        "model.norm": "rmsnorm" if "rmsnorm" in str(fields.take(f"{_M}norm_type", default="layernorm")) else "layernorm",
        "model.tie_word_embeddings": fields.take(f"{_M}tie_word_embeddings", default=True) is not False,
    }


TABLE: tuple[Entry, ...] = (
    constant(model__name="mpt_causal_lm"),
    Guarded(
        (f"{_M}d_model", f"{_M}n_layers"),
        (
            SameNumber("model.hidden_size", f"{_M}d_model", default=2048),
            SameNumber("model.num_hidden_layers", f"{_M}n_layers", default=24),
            SameNumber("model.num_attention_heads", f"{_M}n_heads", default=16),
            SameNumber("model.vocab_size", f"{_M}vocab_size", default=50368),
            TwoWays(
                lambda run: {f"{_M}head_dim": run["model.head_dim"]} if run["model.head_dim"] else {},
                lambda fields: {"model.head_dim": fields.number(f"{_M}head_dim")},
            ),
            TwoWays(_write_attention, _read_attention),
            TwoWays(_write_mlp, _read_mlp),
        ),
    ),
    DropoutRates((f"{_M}attn_config.attn_pdrop", f"{_M}resid_pdrop"), 0.0),  # MPTConfig, attn_config_defaults
    TwoWays(_write_batch, _read_batch),
    TwoWays(_write_sharding, _read_sharding),
    NamedChoice("parallel.recompute", f"{_F}activation_checkpointing", {"full": True, "none": False}, default="none"),
    NamedChoice("workload.precision", "precision", PRECISIONS, default="bf16"),
    constant(fsdp_config__mixed_precision="PURE"),
)

LLM_FOUNDRY = LaunchFramework(
    name="llm_foundry",
    title="LLM Foundry",
    profiles=("llm_foundry",),
    form=YAML,
    table=TABLE,
    idle=(
        *(
            "tokenizer",
            "train_loader",
            "eval",
            "scheduler",
            "optimizer",
            "algorithms",
            "max_duration",
            "seed",
            "progress_bar",
            "log",
            "console_log",
            "callbacks",
        ),
        *(
            "loggers",
            "save",
            "load",
            "run_name",
            "dataloader",
            "data",
            "dist_timeout",
            "autoresume",
            "python_log_level",
            "device_eval",
            "variables",
            "icl",
        ),
        *(
            "model.init",
            "model.loss_fn",
            "model.emb_pdrop",
            "fsdp_config.backward_prefetch",
            "fsdp_config.limit_all_gathers",
        ),
        *(
            "fsdp_config.activation_cpu",
            "fsdp_config.verbose",
            "fsdp_config.activation_checkpointing_reentrant",
            "fsdp_config.state_dict",
            "max_split",
            "spin",
        ),
    ),
    elsewhere={"model": "MPTConfig has none of it; hf_causal_lm takes a model of Hugging Face's"},
)
