"""torchtitan: a TOML of its JobConfig (torchtitan/config/job_config.py)."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from rapid_dse.analysis.launch_files.field_table import (
    ACCUMULATION,
    CHUNKS,
    Entry,
    FieldsRead,
    LaunchedRun,
    NamedChoice,
    SameNumber,
    TwoWays,
)
from rapid_dse.analysis.launch_files.file_forms import TOML
from rapid_dse.analysis.launch_files.framework import LaunchFramework
from rapid_dse.model.architecture import split_of
from rapid_dse.parallel.schedules import schedule_of

# Models by torchtitan's name and flavor (torchtitan/models/*/__init__.py).
FLAVORS = {
    "llama3_1_8b": ("llama3", "8B"),
    "llama3_1_70b": ("llama3", "70B"),
    "llama3_1_405b": ("llama3", "405B"),
    "qwen3_8b": ("qwen3", "8B"),
    "qwen3_32b": ("qwen3", "32B"),
    "qwen3_30b_a3b": ("qwen3", "30B-A3B"),
    "qwen3_235b_a22b": ("qwen3", "235B-A22B"),
    "deepseek_v2": ("deepseek_v3", "236B"),
    "deepseek_v3": ("deepseek_v3", "671B"),
    "llama4_scout": ("llama4", "17bx16e"),
    "gpt_oss_20b": ("gpt_oss", "20b"),
    "gpt_oss_120b": ("gpt_oss", "120b"),
}
SCHEDULES = {"gpipe": "GPipe", "1f1b": "1F1B", "interleaved_1f1b": "Interleaved1F1B", "zero_bubble": "InterleavedZeroBubble"}
SCHEDULES |= {"zb_v": "ZBVZeroBubble", "dualpipe_v": "DualPipeV"}
ENDS, LAYERS_A_CHUNK = "stage_ends", "layers_a_chunk"  # what the split over stages hangs on, beside the model's layers
RECIPES = {"rowwise": "rowwise", "tensorwise": "tensorwise"}
_P = "parallelism."
_FLOAT8 = "quantize.linear.float8"


def _write_model(run: LaunchedRun) -> dict[str, Any]:
    flavor = FLAVORS.get(run["model.name"])
    return {} if flavor is None else {"model.name": flavor[0], "model.flavor": flavor[1]}


def _read_model(fields: FieldsRead) -> dict[str, Any]:
    name, flavor = fields.take("model.name"), str(fields.take("model.flavor", default=""))
    plain = re.sub(r"_(flex|varlen).*$", "", flavor)
    for option, said in FLAVORS.items():
        if said == (name, plain):
            return {"model": option}
    if name is not None:
        fields.notes.append(f"model.name={name} flavor={flavor}: no model here; give model=… or model=./config.json")
    return {}


def _write_expert_grid(run: LaunchedRun) -> dict[str, Any]:
    return {f"{_P}expert_tensor_parallel_degree": int(run.layout.expert_tp[0])} if run["model.num_experts"] else {}


def _read_expert_grid(fields: FieldsRead) -> dict[str, Any]:
    etp, ep = fields.number(f"{_P}expert_tensor_parallel_degree"), fields.keys.get("parallel.ep", 1)
    return {"parallel.etp": etp} if etp and (etp > 1 or ep > 1) else {}


def _write_sharding(run: LaunchedRun) -> dict[str, Any]:
    cp, shards = run.count("parallel.cp"), run.shards
    shards_a_replica = max(1, shards // cp) if run["parallel.zero"] > 0 else 1
    policy = {2: "never", 3: "always"}.get(run["parallel.zero"])
    said: dict[str, Any] = {
        f"{_P}data_parallel_replicate_degree": run.count("parallel.dp") // shards_a_replica,
        f"{_P}data_parallel_shard_degree": shards_a_replica,
    }
    return said | ({f"{_P}fsdp_reshard_after_forward": policy} if policy else {})


def _read_sharding(fields: FieldsRead) -> dict[str, Any]:
    copies, shards = (
        fields.number(f"{_P}data_parallel_replicate_degree", default=1),
        fields.number(f"{_P}data_parallel_shard_degree", default=-1),
    )
    policy, piped = fields.take(f"{_P}fsdp_reshard_after_forward", default="default"), fields.keys.get("parallel.pp", 1) > 1
    keeps = policy == "never" or (policy == "default" and piped)
    cp = fields.keys.get("parallel.cp", 1)
    said: dict[str, Any] = {"parallel.zero": 2 if keeps else 3}
    if shards > 0:
        said["parallel.dp"] = copies * shards
        if copies > 1:
            said["parallel.shard_group"] = shards * cp
        if shards * cp == 1 and copies > 1:  # DDP
            said |= {"parallel.zero": 0, "parallel.shard_group": None, "software.enforce": False}
    elif copies > 1:
        fields.notes.append(
            f"{_P}data_parallel_shard_degree=-1 beside {copies} replicas: taken as one group of shards; give parallel.shard_group=…"
        )
    return said


def _write_batch(run: LaunchedRun) -> dict[str, Any]:
    micro, batch = run.count("parallel.micro_batch_size"), run.count("workload.global_batch_size")
    said = {"training.seq_len": run["workload.seq_len"], "training.global_batch_size": batch}
    if run["parallel.pp"] > 1:  # a rank's whole batch is one pipeline's
        return said | {"training.local_batch_size": batch // run.count("parallel.dp"), f"{_P}pipeline_parallel_microbatch_size": micro}
    return said | {"training.local_batch_size": micro}


def _read_batch(fields: FieldsRead) -> dict[str, Any]:
    local, whole = (
        fields.number("training.local_batch_size", "training.batch_size", default=8),
        fields.number("training.global_batch_size", default=-1),
    )
    micro = fields.number(f"{_P}pipeline_parallel_microbatch_size", default=1)
    piped = fields.keys.get("parallel.pp", 1) > 1
    sequences = micro if piped else local
    said: dict[str, Any] = {"parallel.micro_batch_size": sequences, "workload.seq_len": fields.number("training.seq_len", default=2048)}
    return said | ({"workload.global_batch_size": whole} if whole > 0 else {ACCUMULATION: max(1, local // sequences)})


def _write_stages(run: LaunchedRun) -> dict[str, Any]:
    pp, vpp = run.count("parallel.pp"), run.count("parallel.vpp")
    if pp == 1:
        return {}
    schedule = schedule_of(run["parallel.schedule"])
    chunks_a_stage = max(vpp, schedule.fixed_chunks)
    counts, places = split_of(run.scenario).chunks(pp, chunks_a_stage, schedule.stage_map), schedule.stage_map.places(pp, chunks_a_stage)
    chunks = [counts[stage][chunk] for stage, chunk in (np.argwhere(places == at)[0] for at in range(pp * chunks_a_stage))]
    looped = run["parallel.schedule"] not in ("gpipe", "1f1b")
    for ends in (1, 0):
        layers_a_chunk = None if chunks_a_stage == (2 if looped else 1) else math.ceil((sum(chunks) + 2 * ends) / len(chunks))
        if _split(sum(chunks), len(chunks), (ends, ends)) == chunks and (
            layers_a_chunk is None or math.ceil((sum(chunks) + 2 * ends) / layers_a_chunk) == len(chunks)
        ):
            said = {f"{_P}pipeline_parallel_first_stage_less_layers": ends, f"{_P}pipeline_parallel_last_stage_less_layers": ends}
            return said | ({} if layers_a_chunk is None else {f"{_P}pipeline_parallel_layers_per_stage": layers_a_chunk})
    return {f"{_P}module_fqns_per_model_part": _modules(chunks)}


def _modules(chunks: list[int]) -> list[list[str]]:
    """Names of the modules of each chunk."""
    parts, at = [], 0
    for count in chunks:
        parts.append([f"layers.{layer}" for layer in range(at, at + count)])
        at += count
    return [["tok_embeddings", *parts[0]], *parts[1:-1], [*parts[-1], "norm", "output"]]


def _split(layers: int, chunks: int, ends: tuple[int, int]) -> list[int]:
    """Layers of each chunk as torchtitan deals them (pipeline_parallel.py, generate_llm_fqn_per_model_part)."""
    first, last = ends
    layers_a_chunk, more = divmod(layers + first + last, chunks)
    counts = [layers_a_chunk + (chunk < more) for chunk in range(chunks)]
    counts[0] -= first
    counts[-1] -= last
    return counts


def _read_stages(fields: FieldsRead) -> dict[str, Any]:
    pp, schedule = fields.keys.get("parallel.pp", 1), fields.keys.get("parallel.schedule")
    ends = tuple(fields.number(f"{_P}pipeline_parallel_{end}_stage_less_layers", default=1) for end in ("first", "last"))
    parts, layers_a_chunk = fields.take(f"{_P}module_fqns_per_model_part"), fields.number(f"{_P}pipeline_parallel_layers_per_stage")
    if pp == 1:
        return {"parallel.schedule": None, "parallel.vpp": 1}
    if parts:
        counts = [sum(str(name).startswith("layers.") for name in part) for part in parts]
        return {CHUNKS: counts}
    return {"parallel.vpp": 1 if schedule in ("gpipe", "1f1b") else 2, ENDS: ends, LAYERS_A_CHUNK: layers_a_chunk}


def settle_stages(keys: dict[str, Any], layers: int) -> None:
    """Puts the layers of each chunk in the place of what they depend on beside the model's layers."""
    ends, layers_a_chunk, pp = keys.pop(ENDS, None), keys.pop(LAYERS_A_CHUNK, None), keys.get("parallel.pp", 1)
    if ends is None:
        return
    if layers_a_chunk:
        keys["parallel.vpp"] = max(1, math.ceil((layers + sum(ends)) / layers_a_chunk) // pp)
    counts = _split(layers, pp * keys["parallel.vpp"], ends)
    keys[CHUNKS] = [max(0, count) for count in counts]


def _write_precision(run: LaunchedRun) -> dict[str, Any]:
    precision, recipe = run["workload.precision"], run["software.fp8_recipe"]
    said: dict[str, Any] = {"training.mixed_precision_param": "float32" if precision in ("fp32", "tf32") else "bfloat16"}
    if precision == "fp8":
        gathers = recipe == "tensorwise + fp8 all-gather"
        name = "tensorwise" if gathers else RECIPES.get(recipe)
        said |= {"model.converters": [_FLOAT8]} | ({f"{_FLOAT8}.recipe_name": name} if name else {})
        said |= {f"{_FLOAT8}.enable_fsdp_float8_all_gather": True} if gathers else {}
    return said


def _read_precision(fields: FieldsRead) -> dict[str, Any]:
    converters = fields.take("model.converters", default=[])
    recipe = fields.take(f"{_FLOAT8}.recipe_name", "float8.recipe_name", default="tensorwise")
    gathers = fields.flag(f"{_FLOAT8}.enable_fsdp_float8_all_gather", "float8.enable_fsdp_float8_all_gather")
    fields.flag(f"{_FLOAT8}.precompute_float8_dynamic_scale_for_fsdp", "float8.precompute_float8_dynamic_scale_for_fsdp")
    wide = fields.take("training.mixed_precision_param", default="bfloat16")
    if any("float8" in str(name) for name in converters):
        mine = {theirs: ours for ours, theirs in RECIPES.items()}.get(recipe, "rowwise")
        return {
            "workload.precision": "fp8",
            "software.fp8_recipe": "tensorwise + fp8 all-gather" if gathers and mine == "tensorwise" else mine,
        }
    return {"workload.precision": "fp32" if wide == "float32" else "bf16"}


def _write_compiled(run: LaunchedRun) -> dict[str, Any]:
    return {"compile.enable": run["software"] != "torchtitan_eager"}


def _read_compiled(fields: FieldsRead) -> dict[str, Any]:
    return {"software": "torchtitan" if fields.flag("compile.enable", "training.compile") else "torchtitan_eager"}


def _read_async(fields: FieldsRead) -> dict[str, Any]:
    overlaps = fields.flag(f"{_P}enable_async_tensor_parallel", "experimental.enable_async_tensor_parallel")
    return {"software.async_tp": overlaps} if fields.keys.get("parallel.tp", 1) > 1 else {}


def _read_checkpoints(fields: FieldsRead) -> dict[str, Any]:
    mode, option = (
        fields.take("activation_checkpoint.mode", default="selective"),
        fields.take("activation_checkpoint.selective_ac_option", default="op"),
    )
    if mode == "selective" and str(option) != "op":
        fields.notes.append(f"activation_checkpoint.selective_ac_option={option}: taken as op")
    if mode not in ("none", "selective", "full"):
        fields.notes.append(f"activation_checkpoint.mode={mode}: taken as selective")
    return {"parallel.recompute": mode if mode in ("none", "full") else "selective"}


def _write_checkpoints(run: LaunchedRun) -> dict[str, Any]:
    mode = run["parallel.recompute"]
    return {"activation_checkpoint.mode": mode} | ({"activation_checkpoint.selective_ac_option": "op"} if mode == "selective" else {})


def _write_offload(run: LaunchedRun) -> dict[str, Any]:
    """CPUOffloadPolicy has weights and states on the host, all of them."""
    whole = run["parallel.offload_optimizer"] == run["parallel.offload_weights"] == 1
    return {"training.enable_cpu_offload": True} if whole else {}


def _read_offload(fields: FieldsRead) -> dict[str, Any]:
    offloads = fields.flag("training.enable_cpu_offload")
    return {"parallel.offload_optimizer": 1.0, "parallel.offload_weights": 1.0} if offloads else {}


TABLE: tuple[Entry, ...] = (
    TwoWays(_write_model, _read_model),
    SameNumber("parallel.tp", f"{_P}tensor_parallel_degree", default=1),
    SameNumber("parallel.cp", f"{_P}context_parallel_degree", ("experimental.context_parallel_degree",), default=1),
    SameNumber("parallel.pp", f"{_P}pipeline_parallel_degree", ("experimental.pipeline_parallel_degree",), default=1),
    SameNumber("parallel.ep", f"{_P}expert_parallel_degree", default=1),
    TwoWays(_write_expert_grid, _read_expert_grid),
    NamedChoice(
        "parallel.schedule",
        f"{_P}pipeline_parallel_schedule",
        SCHEDULES,
        default="1f1b",
        aliases=("experimental.pipeline_parallel_schedule",),
    ),
    TwoWays(_write_stages, _read_stages),
    TwoWays(_write_sharding, _read_sharding),
    TwoWays(_write_batch, _read_batch),
    TwoWays(_write_checkpoints, _read_checkpoints),
    TwoWays(_write_offload, _read_offload),
    TwoWays(_write_precision, _read_precision),
    TwoWays(lambda run: {f"{_P}enable_async_tensor_parallel": bool(run["software.async_tp"])}, _read_async),
    TwoWays(_write_compiled, _read_compiled),
)

TORCHTITAN = LaunchFramework(
    name="torchtitan",
    title="torchtitan",
    profiles=("torchtitan", "torchtitan_eager"),
    form=TOML,
    table=TABLE,
    idle=(
        *(
            "job",
            "profiling",
            "metrics",
            "optimizer",
            "lr_scheduler",
            "checkpoint",
            "comm",
            "validation",
            "fault_tolerance",
            "memory_estimation",
        ),
        *(
            "training.max_norm",
            "training.steps",
            "training.dataset",
            "training.seed",
            "training.warmup",
            "model.norm_type",
            "model.tokenizer_path",
        ),
        *(
            "model.hf_assets_path",
            "training.gc",
            "debug",
            "compile.components",
            "compile.backend",
            "training.mixed_precision_reduce",
            "quantize.linear.float8.filter",
        ),
    ),
    elsewhere={"model": "a flavor of its own in torchtitan/models"},
)
