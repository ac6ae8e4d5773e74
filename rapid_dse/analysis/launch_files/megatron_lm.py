"""Megatron-LM: arguments of pretrain_gpt.py (megatron/training/arguments.py) behind torchrun."""

from __future__ import annotations

import math
import re
from typing import Any

from rapid_dse.analysis.launch_files import megatron_core as core
from rapid_dse.analysis.launch_files import megatron_memory as memory
from rapid_dse.analysis.launch_files.field_table import CARDS, Entry, FieldsRead, LaunchedRun, TwoWays
from rapid_dse.analysis.launch_files.file_forms import script
from rapid_dse.analysis.launch_files.framework import LaunchFramework

NODES, PER_NODE = "--nnodes", "--nproc-per-node"
MEETING = {"--rdzv-backend": "c10d", "--rdzv-endpoint": "$MASTER_ADDR:29500"}  # where torchrun's nodes find each other
CONNECTIONS = "env:CUDA_DEVICE_MAX_CONNECTIONS"
RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")


def spell(name: str) -> str:
    """A name of Megatron Core's as a flag."""
    return f"--{name.replace('_', '-')}"


def _write_gpus(run: LaunchedRun) -> dict[str, Any]:
    gpus = run.count("hw.num_gpus")
    gpus_a_node = math.gcd(gpus, run.scenario.hw.gpus_per_node)
    nodes = gpus // gpus_a_node
    return {NODES: nodes, PER_NODE: gpus_a_node} | (MEETING if nodes > 1 else {})


def _read_gpus(fields: FieldsRead) -> dict[str, Any]:
    nodes = fields.number(NODES, "--num-nodes", "sbatch:nodes", "sbatch:N", "env:NNODES", "env:NUM_NODES", "env:SLURM_NNODES", "-N")
    per_node = (
        "env:GPUS_PER_NODE",
        "env:NPROC_PER_NODE",
        "sbatch:gpus-per-node",
        "sbatch:ntasks-per-node",
        "--num-gpus",
        "--ntasks-per-node",
    )
    gpus_a_node = fields.number(PER_NODE, *per_node)
    whole = fields.number("env:WORLD_SIZE", "env:NUM_GPUS", "--num-processes")
    for name in ("sbatch:gres", "--node-rank", "--master-addr", "--master-port", "--rdzv-id", "--rdzv-backend", "--rdzv-endpoint"):
        fields.take(name)
    if nodes and gpus_a_node:
        return {"hw.num_gpus": nodes * gpus_a_node}
    return {"hw.num_gpus": whole or gpus_a_node} if whole or gpus_a_node else {}


def _write_connections(run: LaunchedRun) -> dict[str, Any]:
    """One queue of the host for all streams, without which Megatron-LM starts no tensor or context parallelism before Blackwell; and no
    Megatron-FSDP with it (arguments.py, validate_args)."""
    parts = run.count("parallel.tp") > 1 or run.count("parallel.cp") > 1
    return {CONNECTIONS: 1} if parts and run["parallel.zero"] < 2 and not run.scenario.hw.tensor_memory else {}


def _read_connections(fields: FieldsRead) -> dict[str, Any]:
    fields.take(CONNECTIONS)
    return {}


def _write_checkpoints(run: LaunchedRun) -> dict[str, Any]:
    """The only format of checkpoints that Megatron-FSDP starts with (arguments.py, validate_args)."""
    return {"--ckpt-format": "fsdp_dtensor"} if run["parallel.zero"] > 1 else {}


def _write_precision(run: LaunchedRun) -> dict[str, Any]:
    precision, recipe = run["workload.precision"], run["software.fp8_recipe"]
    if precision == "fp8":
        kind = "e4m3" if recipe == "mxfp8" else "hybrid"
        return {"--bf16": True, "--fp8-format": kind} | ({"--fp8-recipe": recipe} if recipe in RECIPES else {})
    return {f"--{precision}": True} if precision in ("bf16", "fp16") else {}


def _read_precision(fields: FieldsRead) -> dict[str, Any]:
    bf16, fp16 = fields.flag("--bf16"), fields.flag("--fp16")
    fp8 = fields.take("--fp8-format", "--fp8")
    recipe = fields.take("--fp8-recipe", default="delayed")
    if fp8:
        known = {"software.fp8_recipe": recipe} if recipe in RECIPES else {}
        return {"workload.precision": "fp8"} | known
    return {"workload.precision": "bf16" if bf16 else "fp16" if fp16 else "fp32"}


def _write_mlp(run: LaunchedRun) -> dict[str, Any]:
    kinds = {"swiglu": {"--swiglu": True}, "relu2": {"--squared-relu": True}}
    return {"--ffn-hidden-size": run["model.intermediate_size"]} | kinds.get(run["model.mlp_type"], {})


def _read_mlp(fields: FieldsRead) -> dict[str, Any]:
    gated, squared = fields.flag("--swiglu"), fields.flag("--squared-relu")
    hidden = fields.keys.get("model.hidden_size", 0)
    usual = int(4 * hidden * 2 / 3 / 64) * 64 if gated else 4 * hidden  # arguments.py, validate_args
    wide = fields.number("--ffn-hidden-size", default=usual)
    return {"model.intermediate_size": wide, "model.mlp_type": "swiglu" if gated else "relu2" if squared else "gelu"}


def _write_heads(run: LaunchedRun) -> dict[str, Any]:
    groups = run["model.num_key_value_heads"]
    return {} if groups == run["model.num_attention_heads"] else {"--group-query-attention": True, "--num-query-groups": groups}


def _read_heads(fields: FieldsRead) -> dict[str, Any]:
    groups, grouped = fields.number("--num-query-groups"), fields.flag("--group-query-attention")
    return {"model.num_key_value_heads": groups if grouped and groups else fields.keys.get("model.num_attention_heads")}


def _write_rest(run: LaunchedRun) -> dict[str, Any]:
    said: dict[str, Any] = {
        "--position-embedding-type": {"rope": "rope", "learned": "learned_absolute"}.get(run["model.position_embedding"], "none"),
        "--max-position-embeddings": run["workload.seq_len"],
        "--untie-embeddings-and-output-weights": not run["model.tie_word_embeddings"],
        "--disable-bias-linear": not run["model.linear_bias"],
        "--add-qkv-bias": run["model.attention_bias"] and not run["model.linear_bias"],
    }
    window = run["model.sliding_window"]
    return said | ({"--window-size": f"{window - 1},0"} if window else {})


def _read_rest(fields: FieldsRead) -> dict[str, Any]:
    position = fields.take("--position-embedding-type", default="learned_absolute")
    rotary = fields.flag("--use-rotary-position-embeddings") or position == "rope"
    fields.take("--max-position-embeddings")
    biased = not fields.flag("--disable-bias-linear")
    window = str(fields.take("--window-size", default="")).strip("()").replace(" ", ",").split(",")[0]
    return {
        "model.position_embedding": "rope" if rotary else "learned",
        "model.tie_word_embeddings": not fields.flag("--untie-embeddings-and-output-weights"),
        "model.linear_bias": biased,
        "model.attention_bias": fields.flag("--add-qkv-bias") or biased,
        "model.sliding_window": int(window) + 1 if window.isdigit() else None,
    }


def _write_kernels(run: LaunchedRun) -> dict[str, Any]:
    return {
        "--tp-comm-overlap": run["software.async_tp"] and run["parallel.tp"] > 1,
        "--cross-entropy-loss-fusion": run["software.loss"] == "fused",
        "--grad-reduce-in-bf16": run["software.gradient_dtype"] == "bf16",
        "--attention-backend": "unfused" if run["software.attention"] == "unfused" else "auto",
    }


def _read_kernels(fields: FieldsRead) -> dict[str, Any]:
    backend = fields.take("--attention-backend", default="auto")
    fields.take("--use-flash-attn")
    said: dict[str, Any] = {
        "software.gradient_dtype": "bf16" if fields.flag("--grad-reduce-in-bf16") else "fp32",
        "software.loss": "fused" if fields.flag("--cross-entropy-loss-fusion") else "in_place",
        "software.attention": "unfused" if backend in ("unfused", "local") else "flash",
    }
    overlap = fields.flag("--tp-comm-overlap")
    return said | ({"software.async_tp": overlap} if fields.keys.get("parallel.tp", 1) > 1 else {})


def _old_names(fields: FieldsRead) -> dict[str, Any]:
    """Megatron-DeepSpeed's own arguments."""
    stage = fields.number("--zero-stage")
    deepspeed = fields.flag("--deepspeed")
    said: dict[str, Any] = {"software": "megatron_deepspeed"} if deepspeed or stage is not None else {}
    return said | ({"parallel.zero": stage} if stage is not None else {})


def _read_environment(fields: FieldsRead) -> dict[str, Any]:
    """What NCCL's variables say of the network."""
    said: dict[str, Any] = {}
    cards = str(fields.take("env:NCCL_IB_HCA", default="")).strip("=")
    listed = [name for name in cards.split(",") if re.search(r"\d", name.split(":")[0])]
    if listed and not cards.startswith("^"):
        fields.notes.append(f"NCCL_IB_HCA={_short(cards)}: {len(listed)} network cards a node, which its GPUs share")
        said[CARDS] = len(listed)
    if str(fields.take("env:NCCL_NVLS_ENABLE", default="1")) == "0":
        said["hw.network.dimensions.0.in_network_reduction"] = False
    for name, what in (("NCCL_P2P_DISABLE", "NVLink"), ("NCCL_IB_DISABLE", "InfiniBand and RoCE")):
        if str(fields.take(f"env:{name}", default="0")) not in ("0", ""):
            fields.notes.append(f"{name} is set: {what} is switched off, and is predicted as if it were not")
    return said


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


TABLE: tuple[Entry, ...] = (
    TwoWays(_write_gpus, _read_gpus),
    core.Guarded(
        ("--hidden-size", "--num-layers"),
        (
            *core.model(spell),
            TwoWays(_write_heads, _read_heads),
            TwoWays(_write_mlp, _read_mlp),
            TwoWays(_write_rest, _read_rest),
            core.latent_attention(spell),
        ),
    ),
    core.dropout(spell, 0.1),  # arguments.py
    *core.degrees(spell),
    core.stages(spell, "--num-virtual-stages-per-pipeline-rank"),
    memory.recomputation(spell),
    memory.offloading(spell, whole=False),
    *core.sharding(spell, "optim_grads_params"),
    TwoWays(_write_checkpoints, lambda _: {}),
    TwoWays(_write_connections, _read_connections),
    TwoWays(_write_precision, _read_precision),
    TwoWays(_write_kernels, _read_kernels),
    TwoWays(lambda _: {}, _old_names),
    TwoWays(lambda _: {}, _read_environment),
    TwoWays(lambda _: {}, core.finished),
)

MEGATRON_LM = LaunchFramework(
    name="megatron_lm",
    title="Megatron-LM",
    profiles=("megatron_lm", "megatron_deepspeed"),
    form=script("pretrain_gpt.py", (NODES, PER_NODE, *MEETING)),
    table=TABLE,
    idle=(
        *(
            "lr",
            "min-lr",
            "weight-decay",
            "adam",
            "clip-grad",
            "train-iters",
            "train-samples",
            "train-data",
            "data",
            "split",
            "tokenizer",
            "vocab-file",
        ),
        *(
            "merge-file",
            "save",
            "load",
            "log",
            "tensorboard",
            "wandb",
            "eval",
            "exit",
            "seed",
            "init-method",
            "ckpt",
            "dist",
            "distributed-backend",
        ),
        *(
            "use-mcore-models",
            "transformer-impl",
            "optimizer",
            "mock-data",
            "num-workers",
            "norm-epsilon",
        ),
        *(
            "rotary",
            "timing",
            "no-load",
            "no-save",
            "override",
            "finetune",
            "start-weight",
            "end-weight",
            "rampup",
            "initial-loss",
            "loss-scale",
        ),
        *(
            "make-vocab",
            "manual-gc",
            "moe-aux",
            "moe-z",
            "moe-router-load",
            "moe-router-dtype",
            "moe-router-pre",
            "account",
            "partition",
            "time",
        ),
        *(
            "job-name",
            "output",
            "error",
            "qos",
            "mem",
            "cpus",
            "exclusive",
            "export",
            "container",
            "nodelist",
            "exclude",
            "standalone",
            "tee",
            "role",
        ),
        *(
            "use-checkpoint",
            "accumulate",
            "no-gradient-accumulation",
            "no-masked",
            "no-bias",
            "no-rope",
            "apply",
            "deepspeed",
            "local-ranks",
            "max-restarts",
        ),
    ),
    elsewhere={"workload.precision": "torch.backends.cuda.matmul.allow_tf32 in the program"},
)
