"""NeMo by Megatron Bridge: overrides of a recipe's ConfigContainer, a YAML file for ``--config-file``.

Names of NeMo 1's YAML are read too.
"""

from __future__ import annotations

from typing import Any

from rapid_dse.analysis.launch_files import megatron_core as core
from rapid_dse.analysis.launch_files import megatron_memory as memory
from rapid_dse.analysis.launch_files.field_table import Entry, FieldsRead, LaunchedRun, SameNumber, TwoWays
from rapid_dse.analysis.launch_files.file_forms import YAML
from rapid_dse.analysis.launch_files.framework import LaunchFramework
from rapid_dse.config.lora_names import ALL_LINEAR, HUGGING_FACE_MODULES, MEGATRON_MODULES

_TRAIN = ("global_batch_size", "micro_batch_size")
_DDP = (
    *("use_distributed_optimizer", "use_megatron_fsdp", "use_custom_fsdp", "data_parallel_sharding_strategy", "overlap_grad_reduce"),
    *("overlap_param_gather", "num_distributed_optimizer_instances"),
)
_OPTIMIZER = ("optimizer_cpu_offload", "optimizer_offload_fraction")
_OTHER = {"num_experts": "num_moe_experts"}
# Recipes of mixed precision (training/mixed_precision.py) by precision and fp8 recipe.
_PRECISIONS = {
    ("bf16", None): "bf16_mixed",
    ("fp16", None): "fp16_mixed",
    ("fp8", "delayed"): "bf16_with_fp8_delayed_scaling_mixed",
    ("fp8", "tensorwise"): "bf16_with_fp8_current_scaling_mixed",
    ("fp8", "blockwise"): "bf16_with_fp8_subchannel_scaling_mixed",
    ("fp8", "mxfp8"): "bf16_with_mxfp8_mixed",
    ("fp4", None): "bf16_with_nvfp4_mixed",
}


def spell(name: str) -> str:
    """A name of Megatron Core's with the section that has it."""
    section = next((section for section, names in (("train", _TRAIN), ("ddp", _DDP), ("optimizer", _OPTIMIZER)) if name in names), "model")
    return f"{section}.{_OTHER.get(name, name)}"


def _write_precision(run: LaunchedRun) -> dict[str, Any]:
    precision = run["workload.precision"]
    word = _PRECISIONS.get((precision, run["software.fp8_recipe"] if precision == "fp8" else None))
    return {"mixed_precision": word} if word else {}


def _read_precision(fields: FieldsRead) -> dict[str, Any]:
    word = fields.take("mixed_precision", "trainer.precision", "trainer.plugins.precision", default=None)
    fp8 = fields.flag("model.fp8", "model.fp8_hybrid")
    for (precision, recipe), name in _PRECISIONS.items():
        if word == name:
            return {"workload.precision": precision} | ({"software.fp8_recipe": recipe} if recipe else {})
    if fp8:
        return {"workload.precision": "fp8"}
    words = {"bf16": "bf16", "bf16-mixed": "bf16", "16": "fp16", "16-mixed": "fp16", "32": "fp32"}
    if word is None:
        return {"workload.precision": "fp32"}
    if str(word) not in words:
        fields.notes.append(f"mixed_precision={word}: taken as bf16")
    return {"workload.precision": words.get(str(word), "bf16")}


def _write_rest(run: LaunchedRun) -> dict[str, Any]:
    gated = run["model.mlp_type"] in ("swiglu", "geglu")
    functions = {"swiglu": "silu", "geglu": "gelu", "gelu": "gelu"}
    said: dict[str, Any] = {
        "model.ffn_hidden_size": run["model.intermediate_size"],
        "model.gated_linear_unit": gated,
        "model.num_query_groups": run["model.num_key_value_heads"],
        "model.position_embedding_type": {"rope": "rope", "learned": "learned_absolute"}.get(run["model.position_embedding"], "none"),
        "model.share_embeddings_and_output_weights": run["model.tie_word_embeddings"],
        "model.add_bias_linear": run["model.linear_bias"],
        "model.add_qkv_bias": run["model.attention_bias"] and not run["model.linear_bias"],
    }
    if run["model.mlp_type"] in functions:
        target = f"torch.nn.functional.{functions[run['model.mlp_type']]}"
        said |= {"model.activation_func._target_": target, "model.activation_func._call_": False}
    window = run["model.sliding_window"]
    return said | ({"model.window_size": [window - 1, 0]} if window else {})


def _read_rest(fields: FieldsRead) -> dict[str, Any]:
    heads, hidden = fields.keys.get("model.num_attention_heads"), fields.keys.get("model.hidden_size", 0)
    gated, biased = fields.flag("model.gated_linear_unit"), fields.flag("model.add_bias_linear")
    function = str(fields.take("model.activation_func._target_", "model.activation_func", "model.activation", default=""))
    fields.take("model.activation_func._call_")
    window = fields.take("model.window_size")
    kind = "geglu" if gated and "gelu" in function else "swiglu" if gated or "swiglu" in function else "gelu"
    return {
        "model.intermediate_size": fields.number("model.ffn_hidden_size", default=4 * hidden),
        "model.mlp_type": kind,
        "model.num_key_value_heads": fields.number("model.num_query_groups", default=heads),
        "model.position_embedding": "rope"
        if fields.take("model.position_embedding_type", default="learned_absolute") == "rope"
        else "learned",
        "model.tie_word_embeddings": fields.flag("model.share_embeddings_and_output_weights"),
        "model.linear_bias": biased,
        "model.attention_bias": fields.flag("model.add_qkv_bias") or biased,
        "model.sliding_window": int(window[0]) + 1 if isinstance(window, list) and window else None,
    }


def _write_kernels(run: LaunchedRun) -> dict[str, Any]:
    return {
        "model.cross_entropy_loss_fusion": run["software.loss"] == "fused",
        "comm_overlap.tp_comm_overlap": bool(run["software.async_tp"]),
        "model.attention_backend": "unfused" if run["software.attention"] == "unfused" else "auto",
        "ddp.grad_reduce_in_fp32": run["software.gradient_dtype"] == "fp32",
    }


def _read_kernels(fields: FieldsRead) -> dict[str, Any]:
    names = ("comm_overlap.tp_comm_overlap", "model.tp_comm_overlap", "model.ub_tp_comm_overlap")
    fused, in_fp32 = fields.take("model.cross_entropy_loss_fusion"), fields.take("ddp.grad_reduce_in_fp32")
    said: dict[str, Any] = {"software.attention": "unfused" if fields.take("model.attention_backend") == "unfused" else "flash"}
    said |= {} if fused is None else {"software.loss": "fused" if fused else "in_place"}
    said |= {} if in_fp32 is None else {"software.gradient_dtype": "fp32" if in_fp32 else "bf16"}
    return said | ({"software.async_tp": fields.flag(*names)} if any(name in fields.fields for name in names) else {})


# Adapters of Hugging Face's modules, by the names that CanonicalLoRA gives their targets; LoRA has those of whole products.
_LORA, _CANONICAL = "megatron.bridge.peft.lora.LoRA", "megatron.bridge.peft.canonical_lora.CanonicalLoRA"
_TARGETS = {
    "q_proj": "linear_q",
    "k_proj": "linear_k",
    "v_proj": "linear_v",
    "o_proj": "linear_proj",
    "gate_proj": "linear_fc1_gate",
    "up_proj": "linear_fc1_up",
    "down_proj": "linear_fc2",
}


def _write_adapters(run: LaunchedRun) -> dict[str, Any]:
    if run["workload.trainable"] == "full":
        return {}
    targets = list(run["workload.lora_targets"])
    if targets == [ALL_LINEAR]:
        targets = [name for name in run.scenario.model.linear_modules if name in HUGGING_FACE_MODULES]
    whole = all(name in MEGATRON_MODULES for name in targets)
    words = targets if whole else [_TARGETS[name] for name in targets if name in _TARGETS]
    said = {"peft._target_": _LORA if whole else _CANONICAL, "peft.dim": run["workload.lora_rank"]}
    return said | ({"peft.target_modules": words} if len(words) == len(targets) else {})


def _read_adapters(fields: FieldsRead) -> dict[str, Any]:
    kind, rank, words = (fields.take(f"peft.{name}") for name in ("_target_", "dim", "target_modules"))
    name = str(kind if kind is not None else fields.take("peft") or "").rsplit(".", 1)[-1].lower()
    if name in ("", "none"):
        return {}
    if "lora" not in name:
        fields.notes.append(f"peft={name}: has no counterpart here; priced as training of all weights")
        return {}
    said: dict[str, Any] = {"workload.trainable": "lora", "workload.lora_rank": int(rank or 32)}
    if "canonical" not in name:
        return said | {"workload.lora_targets": words or list(MEGATRON_MODULES[:4])}
    mine = {theirs: ours for ours, theirs in _TARGETS.items()}
    targets = [mine[word] for word in words or _TARGETS.values() if word in mine]
    return said | {"workload.lora_targets": [ALL_LINEAR] if len(targets) == len(_TARGETS) else targets}


def _gpus(fields: FieldsRead) -> dict[str, Any]:
    """NeMo's trainer says how many GPUs there are; a recipe of Megatron Bridge leaves that to the launcher."""
    nodes, gpus_a_node = fields.number("trainer.num_nodes", default=1), fields.number("trainer.devices", "trainer.gpus")
    return {"hw.num_gpus": nodes * gpus_a_node} if gpus_a_node else {}


TABLE: tuple[Entry, ...] = (
    TwoWays(lambda _: {}, _gpus),
    core.Guarded(
        ("model.hidden_size", "model.num_layers"), (*core.model(spell), TwoWays(_write_rest, _read_rest), core.latent_attention(spell))
    ),
    core.dropout(spell, None),
    *core.degrees(spell),
    core.stages(spell, "model.virtual_pipeline_model_parallel_size"),
    memory.recomputation(spell),
    memory.offloading(spell, whole=True),
    *core.sharding(spell, "no_shard"),
    TwoWays(_write_precision, _read_precision),
    TwoWays(_write_kernels, _read_kernels),
    TwoWays(_write_adapters, _read_adapters),
    TwoWays(lambda run: {"dataset.seq_length": run["workload.seq_len"]}, SameNumber("workload.seq_len", "dataset.seq_length").read),
    TwoWays(lambda _: {}, core.finished),
)


NEMO = LaunchFramework(
    name="nemo",
    title="NeMo (Megatron Bridge)",
    profiles=("nemo",),
    form=YAML,
    table=TABLE,
    idle=(
        *(
            "train.train_iters",
            "train.eval",
            "train.exit",
            "train.manual_gc",
            "optimizer",
            "scheduler",
            "logger",
            "checkpoint",
            "tokenizer",
            "rng",
            "dist",
            "ft",
        ),
        *(
            "dataset",
            "profiling",
            "validation",
            "name",
            "exp_manager",
            "trainer.max",
            "trainer.log",
            "trainer.val",
            "trainer.limit",
            "trainer.accelerator",
        ),
        *(
            "model.data",
            "model.optim",
            "model.tokenizer",
            "model.encoder_seq_length",
            "model.init_method_std",
            "model.layernorm_epsilon",
            "model.rotary",
        ),
        *(
            "model.make_vocab",
            "model.moe_aux",
            "model.max_position",
            "peft",
            "straggler",
            "restore",
        ),
    ),
    elsewhere={
        "hw.num_gpus": "the launcher (torchrun --nnodes --nproc-per-node)",
        "workload.precision": "torch.backends.cuda.matmul.allow_tf32",
    },
)
