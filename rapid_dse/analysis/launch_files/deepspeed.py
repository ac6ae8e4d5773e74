"""DeepSpeed: its JSON (deepspeed/runtime/config.py). Model, sequence length, pipeline and recomputation are the training program's."""

from __future__ import annotations

from typing import Any

from rapid_dse.analysis.launch_files.field_table import ACCUMULATION, Entry, FieldsRead, LaunchedRun, TwoWays
from rapid_dse.analysis.launch_files.file_forms import JSON
from rapid_dse.analysis.launch_files.framework import LaunchFramework

_Z = "zero_optimization."
_QUANTIZED = ("zero_quantized_weights", "zero_quantized_gradients")


def _write_batch(run: LaunchedRun) -> dict[str, Any]:
    return {
        "train_batch_size": run["workload.global_batch_size"],
        "train_micro_batch_size_per_gpu": run["parallel.micro_batch_size"],
        "gradient_accumulation_steps": run.micro_batches,
    }


def _read_batch(fields: FieldsRead) -> dict[str, Any]:
    whole, micro, steps = (
        fields.number(name) if fields.fields.get(name) != "auto" else None
        for name in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    )
    for name in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        if fields.take(name) == "auto":
            fields.notes.append(f"{name}=auto: is the training program's; give workload.global_batch_size and parallel.micro_batch_size")
    said: dict[str, Any] = {}
    if whole:
        said["workload.global_batch_size"] = whole
    if micro:
        said["parallel.micro_batch_size"] = micro
    if whole and micro and steps:
        said["parallel.dp"] = max(1, whole // (micro * steps))
    elif steps and not whole:
        said[ACCUMULATION] = steps
    return said


def _write_zero(run: LaunchedRun) -> dict[str, Any]:
    return (
        {f"{_Z}stage": run["parallel.zero"], f"{_Z}overlap_comm": run["software.dp_overlap"] > 0}
        | _write_plus_plus(run)
        | _write_offload(run)
    )


def _write_plus_plus(run: LaunchedRun) -> dict[str, Any]:
    """ZeRO++, as far as it is on."""
    second = run["parallel.zero_hpz_partition_size"]
    said: dict[str, Any] = {f"{_Z}zero_hpz_partition_size": second} if second > 1 else {}
    return said | {f"{_Z}{name}": True for name in _QUANTIZED if run[f"software.{name}"]}


def _read_plus_plus(fields: FieldsRead) -> dict[str, Any]:
    said: dict[str, Any] = {f"software.{name}": True for name in _QUANTIZED if fields.flag(f"{_Z}{name}")}
    second = fields.number(f"{_Z}zero_hpz_partition_size", default=1)
    return said | ({"parallel.zero_hpz_partition_size": second} if second > 1 else {})


def _write_offload(run: LaunchedRun) -> dict[str, Any]:
    """Optimizer states by share (ZeRO-Offload++), weights all or none."""
    share, said = run["parallel.offload_optimizer"], dict[str, Any]()
    if share > 0:
        said |= {f"{_Z}offload_optimizer.device": "cpu", f"{_Z}offload_optimizer.pin_memory": True}
        said |= {f"{_Z}offload_optimizer.ratio": share} if share < 1 else {}
    if run["parallel.offload_weights"] == 1:
        said |= {f"{_Z}offload_param.device": "cpu", f"{_Z}offload_param.pin_memory": True}
    return said


def _read_offload(fields: FieldsRead) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, key in (("offload_optimizer", "parallel.offload_optimizer"), ("offload_param", "parallel.offload_weights")):
        device, ratio = fields.take(f"{_Z}{name}.device", default="none"), fields.real(f"{_Z}{name}.ratio", default=1.0)
        for idle in ("pin_memory", "nvme_path", "buffer_count", "buffer_size", "fast_init", "max_in_cpu"):
            fields.take(f"{_Z}{name}.{idle}")
        if device == "cpu":
            said[key] = ratio
        elif device not in ("none", None):
            fields.notes.append(f"{_Z}{name}.device={device}: taken as the host's memory")
            said[key] = ratio
    return said


def _read_zero(fields: FieldsRead) -> dict[str, Any]:
    stage, overlaps = fields.number(f"{_Z}stage", default=0), fields.take(f"{_Z}overlap_comm")
    group = fields.number(f"{_Z}mics_shard_size", default=0)
    said: dict[str, Any] = {"parallel.zero": stage}
    if overlaps is False:
        said["software.dp_overlap"] = 0.0
    if group and group > 0:
        said["parallel.shard_group"] = group
    return said | _read_plus_plus(fields) | _read_offload(fields)


def _write_precision(run: LaunchedRun) -> dict[str, Any]:
    return {"bf16.enabled": run["workload.precision"] == "bf16", "fp16.enabled": run["workload.precision"] == "fp16"}


def _read_precision(fields: FieldsRead) -> dict[str, Any]:
    bf16, fp16 = fields.take("bf16.enabled", "bfloat16.enabled"), fields.take("fp16.enabled")
    if "auto" in (bf16, fp16):
        fields.notes.append("bf16.enabled and fp16.enabled are auto: taken as bf16")
        return {"workload.precision": "bf16"}
    return {"workload.precision": "bf16" if bf16 else "fp16" if fp16 else "fp32"}


def _write_degrees(run: LaunchedRun) -> dict[str, Any]:
    said: dict[str, Any] = {"tensor_parallel.autotp_size": run["parallel.tp"]} if run["parallel.tp"] > 1 else {}
    return said | ({"expert_parallel.enabled": True, "expert_parallel.autoep_size": run["parallel.ep"]} if run["parallel.ep"] > 1 else {})


def _read_degrees(fields: FieldsRead) -> dict[str, Any]:
    tp, ep = fields.number("tensor_parallel.autotp_size", default=0), fields.number("expert_parallel.autoep_size", default=1)
    fields.take("expert_parallel.enabled")
    said: dict[str, Any] = {"parallel.ep": ep} if ep > 1 else {}
    return said | ({"parallel.tp": tp} if tp > 1 else {})


def _write_checkpoints(run: LaunchedRun) -> dict[str, Any]:
    if run["parallel.recompute"] != "full":
        return {}
    said = {"activation_checkpointing.partition_activations": False, "activation_checkpointing.contiguous_memory_optimization": False}
    return said | ({"activation_checkpointing.cpu_checkpointing": True} if run["parallel.offload_activations"] == 1 else {})


def _read_checkpoints(fields: FieldsRead) -> dict[str, Any]:
    names = [name for name in fields.fields if name.startswith("activation_checkpointing")]
    for name in names:
        fields.take(name)
    if not names:
        return {}
    fields.notes.append(
        "activation_checkpointing: taken as full recomputation, as a training program has it that calls DeepSpeed's checkpoints"
    )
    offloaded = fields.flag("activation_checkpointing.cpu_checkpointing")
    return {"parallel.recompute": "full"} | ({"parallel.offload_activations": 1.0} if offloaded else {})


TABLE: tuple[Entry, ...] = (
    TwoWays(_write_batch, _read_batch),
    TwoWays(_write_degrees, _read_degrees),
    TwoWays(_write_zero, _read_zero),
    TwoWays(_write_precision, _read_precision),
    TwoWays(_write_checkpoints, _read_checkpoints),
)

DEEPSPEED = LaunchFramework(
    name="deepspeed",
    title="DeepSpeed",
    profiles=("deepspeed", "megatron_deepspeed"),
    form=JSON,
    table=TABLE,
    idle=(
        *(
            "optimizer",
            "scheduler",
            "steps_per_print",
            "wall_clock_breakdown",
            "gradient_clipping",
            "fp16",
            "bf16",
            "flops_profiler",
            "tensorboard",
        ),
        *(
            "wandb",
            "zero_allow_untested_optimizer",
            "zero_force_ds_cpu_optimizer",
            "comms_logger",
            "dump_state",
            "checkpoint",
            "data_types",
            "csv_monitor",
        ),
        *(
            f"{_Z}{name}"
            for name in ("contiguous_gradients", "reduce_bucket_size", "allgather_bucket_size", "allgather_partitions", "reduce_scatter")
        ),
        *(
            f"{_Z}{name}"
            for name in ("sub_group_size", "stage3_prefetch", "stage3_param", "stage3_max", "stage3_gather", "round_robin", "offload")
        ),
    ),
    elsewhere={
        "model": "the training program's model",
        "workload.seq_len": "the training program's data",
        "parallel.pp": "PipelineModule(num_stages=…)",
        "parallel.recompute": "the model's own switch",
        "parallel.cp": "UlyssesSPAttentionHF.register_with_transformers(sequence_parallel_size=…), or --ds-sequence-parallel-size",
        "workload.trainable": "the training program's adapters (PEFT)",
        "workload.lora": "the training program's adapters (PEFT)",
        "workload.packing": "the training program's data",
        "parallel.shard_group": "MiCS, which DeepSpeed 0.19 no longer has",
    },
)
