"""Each key of the schema changes some result of some trial, or its change is refused; what was set in vain is said."""

from __future__ import annotations

import ast
import re
import types
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import program
import pytest
from pydantic import BaseModel

from rapid_dse.analysis.fit import logged_peak
from rapid_dse.config.effects import in_vain
from rapid_dse.config.parts import keys_of, value_of
from rapid_dse.config.run import Debug, Search
from rapid_dse.config.scenario import Scenario
from rapid_dse.events.backends import price
from rapid_dse.simulate.results import Priced
from rapid_dse.sweep.compose import composed, hydra_ready, scenario_of, value_at, with_values
from rapid_dse.sweep.outside import judged
from rapid_dse.sweep.space import Setting, layouts_of

# Small trials that together use what there is: options, and values over them.
LLAMA, SIXTEEN = {"hw": "h100", "model": "llama3_1_8b", "software": "megatron_lm"}, {"hw.num_gpus": 16, "workload.global_batch_size": 16}
SERVED = {"hw": "h100", "model": "llama3_1_8b", "software": "vllm", "workload": "inference"}
POOLS = {"hw.num_gpus": 2, "parallel.tp": 1, "parallel.prefill.workers": 1, "parallel.decode.workers": 1}
TRIALS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "piped": (LLAMA, SIXTEEN | {"parallel.tp": 2, "parallel.pp": 4, "parallel.vpp": 2}),
    "fsdp": (LLAMA | {"software": "torchtitan"}, SIXTEEN | {"parallel.zero": 3, "parallel.cp": 4, "parallel.recompute": "full"}),
    "wide": (LLAMA | {"hw": "a100"}, SIXTEEN | {"parallel.tp": 16, "parallel.sequence_parallel": False, "software.async_tp": True}),
    "replicas": (LLAMA, SIXTEEN | {"parallel.zero": 0, "parallel.tp": 2}),
    "reduced": (LLAMA, SIXTEEN | {"parallel.tp": 8, "parallel.sequence_parallel": False}),
    "unfused": (
        LLAMA | {"hw": "a100_pcie", "model": "gpt", "software": "megatron_deepspeed"},
        SIXTEEN | {"software.attention": "unfused", "workload.seq_len": 2048, "parallel.zero": 2},
    ),
    "experts": (LLAMA | {"model": "qwen3_30b_a3b", "software": "nemo"}, SIXTEEN | {"parallel.ep": 8, "model.n_shared_experts": 1}),
    "fp8": (LLAMA | {"hw": "h200", "software": "nemo"}, SIXTEEN | {"parallel.tp": 2, "workload.precision": "fp8"}),
    "fp16": (LLAMA, SIXTEEN | {"workload.precision": "fp16"}),
    "fp32": (LLAMA, SIXTEEN | {"workload.precision": "fp32"}),
    "tf32": (LLAMA, SIXTEEN | {"workload.precision": "tf32"}),
    "slow": (
        LLAMA | {"software": "nanotron", "cluster": "nanotron_degraded"},
        SIXTEEN | {"parallel.tp": 8, "parallel.pp": 2, "parallel.zero": 0},
    ),
    "many": (
        LLAMA | {"software": "nanotron", "cluster": "nanotron_degraded"},
        {"hw.num_gpus": 32, "workload.global_batch_size": 32, "parallel.zero": 0},
    ),
    "racks": (LLAMA | {"hw": "gb200"}, SIXTEEN | {"hw.gpus_per_node": 10, "hw.network.dimensions.0.allocation": 2}),
    "served": (SERVED, {"hw.num_gpus": 2, "parallel.tp": 2, "workload.concurrency": 48, "workload.precision": "fp8"}),
    "full": (SERVED, {"hw.num_gpus": 2, "parallel.tp": 2, "workload.precision": "fp8"}),
    "experts_served": (SERVED | {"model": "qwen3_30b_a3b"}, {"hw.num_gpus": 2, "parallel.tp": 2, "workload.concurrency": 8}),
    "static": (SERVED, {"hw.num_gpus": 1, "workload.batch_size": 2}),
    "fp4": (SERVED | {"hw": "b200"}, {"hw.num_gpus": 1, "workload.precision": "fp4"}),
    "across": (
        SERVED | {"software": "tensorrt_llm"},
        {"hw.num_gpus": 32, "parallel.tp": 8, "parallel.pp": 2, "parallel.cp": 2, "workload.concurrency": 8},
    ),
    "eager": (SERVED, {"hw.num_gpus": 1, "workload.batch_size": 2, "software.cuda_graphs": "none"}),
    "vision": (LLAMA | {"model": "vit_base"}, SIXTEEN),
    "memory": (
        LLAMA | {"model": "lstm", "software": "pytorch"},
        {"hw.num_gpus": 1, "workload.seq_len": 64, "workload.global_batch_size": 1},
    ),
    "images": (
        SERVED | {"model": "vit_base", "software": "pytorch"},
        {"hw.num_gpus": 1, "workload.batch_size": 1},
    ),
    "product": (LLAMA | {"model": "gemm"}, {"hw.num_gpus": 8, "parallel.tp": 8}),
    "simulated": (
        LLAMA | {"backend": "full_astrasim_flattened"},
        {"hw.num_gpus": 16, "workload.global_batch_size": 4, "model.num_hidden_layers": 2, "parallel.tp": 8},
    ),
}
# Where a key shows, a value that shows it, and what is set beside it; of the others any value in any trial is tried.
OVER_LEAVES = {"hw.num_gpus": 64, "parallel.tp": 1, "workload.global_batch_size": 64}
HOST = {"parallel.offload_activations": 1.0, "parallel.offload_optimizer": 1.0, "software.enforce": False}
TOKENS = {"workload.train_tokens": 1e12}
PLUS_PLUS = {"parallel.zero_hpz_partition_size": 2}
TRADED = {
    "parallel.cp_kind": "ulysses",
    "model.num_key_value_heads": 2,
    "software.offers.cp_kinds": ["ring", "ulysses"],
    "software.enforce": True,
}
LORA = {"workload.trainable": "lora", "software.enforce": False}
SHOWN: dict[str, tuple[Any, ...]] = {
    "workload.train_tokens": ("piped", 1e12),
    "cluster.gpu_mtbf": ("piped", 100.0, TOKENS),
    "cluster.restart_time": ("piped", 1000.0, TOKENS),
    "cluster.checkpoint_bandwidth": ("piped", 1e9, TOKENS),
    "software.async_checkpoint": ("piped", True, TOKENS),
    "hw.name": ("slow", "another"),
    "hw.like": ("slow", "a100", {"hw.name": "another"}),
    "hw.tensor_cores_per_sm": ("piped", 4096),
    "hw.tensor_flop_per_sm_clock.fp32": ("fp32", 100.0),
    "hw.tensor_flop_per_sm_clock.tf32": ("tf32", 100.0),
    "hw.tensor_flop_per_sm_clock.fp16": ("fp16", 100.0),
    "hw.energy.flop.fp32": ("fp32", 1e-12),
    "hw.energy.flop.tf32": ("tf32", 1e-13),
    "hw.energy.flop.fp16": ("fp16", 1e-13),
    "hw.tensor_flop_per_sm_clock.fp4": ("fp4", 1000.0),
    "hw.energy.flop.fp4": ("fp4", 1e-12),
    "hw.efficiency.vector": ("fp32", 0.5),
    "hw.efficiency.fp4": ("fp4", 0.1),
    "model.max_position_embeddings": ("served", 2000),
    "model.fp8_block_scales": ("served", True),
    "software.scheduler": ("served", "prefill_first"),
    "software.max_batched_tokens": ("served", 512),
    "software.max_num_seqs": ("full", 64),
    "software.memory_fraction": ("full", 0.5),
    "software.memory_fraction_of": ("full", "rest"),
    "software.cuda_graphs": ("served", "none"),
    "software.layer_latency": ("served", 1e-4),
    "software.expert_latency": ("experts_served", 1e-4),
    "software.collective_latency": ("served", 1e-5),
    "software.quantize_latency": ("served", 1e-5),
    "software.step_latency": ("served", 1e-3),
    "software.sequence_latency": ("served", 1e-4),
    "software.decode_attention": ("served", "shared", {"hw.attention_kernels": ["flash2", "cudnn"], "workload.prompt_len": 30000}),
    "software.admission_latency": ("served", 0.5),
    "software.decode_wait": ("served", 0.1),
    "software.script_latency": ("static", 1e-3),
    "software.expert_launch": ("experts_served", 1e-2),
    "software.in_step": ("served", 0.1, {"software.scheduler": "prefill_first"}),
    "software.prompts_together": ("served", 5.0),
    "software.attention_dp_wait": ("served", 8, {"parallel.attention_dp": 2, "hw.num_gpus": 4, "software.enforce": False}),
    "software.fused_all_reduce": ("served", ["ampere"]),
    "software.one_shot_tokens": ("served", 4096, {"parallel.tp": 8, "hw.num_gpus": 8}),
    "software.prefill_efficiency": ("served", 0.5),
    "software.workspace": ("full", 1e10),
    "software.fp8_cache": ("served", True),
    "software.reserves_whole_requests": ("full", True),
    "workload.batch_size": ("full", 3),
    "workload.concurrency": ("full", 3),
    "workload.request_rate": ("full", 0.1),
    "workload.prompt_len": ("served", 100),
    "workload.decode_len": ("served", 100),
    "workload.num_prompts": ("served", 100),
    "workload.length_spread": ("served", 0.1, {"workload.num_prompts": 100}),
    "workload.draft_tokens": ("served", 2, {"workload.draft_acceptance": 0.5}),
    "workload.draft_acceptance": ("served", 0.5, {"workload.draft_tokens": 2}),
    "workload.prefix_hit": ("served", 0.5),
    "parallel.attention_dp": ("served", 2, {"hw.num_gpus": 4}),
    "parallel.etp": ("experts_served", 2, {"parallel.ep": 2}),
    **{
        f"parallel.{pool}.{name}": ("served", 2, POOLS)
        for pool in ("prefill", "decode")
        for name in ("tp", "pp", "attention_dp", "workers")
    },
    **{f"parallel.{pool}.{name}": ("served", 2, POOLS) for pool in ("prefill", "decode") for name in ("etp", "ep")},
    "software.offers.zero_plus_plus": ("fsdp", ["hpz"], PLUS_PLUS),
    "parallel.zero_hpz_partition_size": ("fsdp", 2, {"software.enforce": False}),
    "software.zero_quantized_weights": ("fsdp", True, {"software.enforce": False}),
    "software.zero_quantized_gradients": ("fsdp", True, {"software.enforce": False}),
    "software.offers.recompute_with_overlap": ("experts", ["none"], {"software.expert_overlap": True, "parallel.recompute": "selective"}),
    "software.offers.overlap_without_chunks": ("experts", True, {"software.expert_overlap": True, "parallel.pp": 2}),
    "software.offers.trainable": ("piped", ["lora"]),
    "software.offers.cp_kinds": ("fsdp", ["ulysses"]),
    "software.offers.cp_beside": ("fsdp", [], {"parallel.tp": 2}),
    "model.swiglu_limit": ("experts", 7.0),
    "software.expert_padding": ("experts", "fused", {"workload.precision": "fp8"}),
    "software.expert_bias": ("experts", "fused", {"model.linear_bias": True}),
    "software.offers.cp_replicates_keys": ("fsdp", False, TRADED),
    "workload.lora_rank": ("piped", 32, LORA),
    "workload.lora_targets": ("piped", ["q_proj"], LORA),
    "hw.registers.size": ("experts", 1e6),
    "hw.registers.bandwidth": ("fp32", 1e12),
    "hw.shared_memory.size": ("experts", 1e5),
    "hw.shared_memory.bandwidth": ("piped", 1e11),
    "hw.attention_kernels": ("piped", []),
    "hw.memory.capacity": ("piped", 4e10),
    "hw.memory.usable": ("piped", 1e9),
    "hw.network.dimensions.0.parallelisms": ("piped", ["pp"]),
    "hw.network.dimensions.1.parallelisms": ("piped", ["tp"]),
    "hw.network.dimensions.0.cabling": ("piped", [0.1] * 7),
    "hw.network.dimensions.1.cabling": ("piped", [0.1]),
    "hw.network.dimensions.0.in_network_reduction": ("reduced", False),
    "hw.network.dimensions.1.in_network_reduction": ("replicas", True),
    "hw.network.dimensions.0.oversubscription": ("simulated", 2.0, OVER_LEAVES | {"hw.network.dimensions.0.size": 64}),
    "hw.network.dimensions.1.oversubscription": ("simulated", 2.0, OVER_LEAVES | {"hw.network.dimensions.0.size": 1}),
    "hw.network.dimensions.0.allocation": ("racks", 5),
    "hw.network.faulty_links": ("simulated", [[0, 16, 0.1]]),
    "hw.measured_table": ("piped", "no/such/table.csv", {"hw.operator_model": "measured"}),
    "model.attention_bias": ("piped", True),
    "model.kind": ("piped", "vit"),
    "model.input_size": ("memory", 512),
    "software.host_library_launch": ("memory", 1e-3),
    "software.host_without_gradients": ("images", 1.0),
    "software.eager": ("images", False),
    "software.gradient_sums": ("vision", True),
    "model.m": ("product", 4096),
    "model.n": ("product", 4096),
    "model.k": ("product", 8192),
    "parallel.gemm_sharding": ("product", "2d"),
    "model.qkv_bias": ("vision", False),
    "model.layer_scale": ("vision", True),
    "model.image_size": ("vision", 384),
    "model.patch_size": ("vision", 32),
    "model.num_prefix_tokens": ("vision", 5),
    "model.num_classes": ("vision", 100),
    "model.first_k_dense_replace": ("experts", 1),
    "model.interleave_moe_layer_step": ("experts", 2),
    "model.layer_types": ("piped", ["sliding_attention", "full_attention"], {"model.sliding_window": 1024}),
    "parallel.dp": ("piped", 4),
    "parallel.order": ("piped", ["pp", "dp", "ep", "cp", "tp"]),
    "parallel.stage_layers": ("piped", [10, 8, 8, 6]),
    "parallel.shard_group": ("fsdp", 4),
    "model.n_group": ("experts", 4, {"model.topk_group": 1, "software.dispatcher": "deepep"}),
    "model.topk_group": ("experts", 1, {"model.n_group": 4, "software.dispatcher": "deepep"}),
    "software.expert_overlap": ("experts", True, {"workload.global_batch_size": 64}),
    "software.ep_overlap": ("experts", 0.0, {"software.expert_overlap": True, "workload.global_batch_size": 64}),
    "workload.kind": ("piped", "inference"),
    "workload.kv_precision": ("served", "fp8"),
    "hw.host.link_bandwidth": ("fsdp", 1e6, HOST),
    "hw.host.memory_bandwidth": ("fsdp", 1e6, HOST),
    "software.offload_overlap": ("fsdp", 0.0, HOST),
    "software.offload_step": ("fsdp", "streamed", HOST),
    "software.selective_recompute": ("piped", "layernorm"),
    "software.keeps_gathered": ("piped", True, {"parallel.recompute": "full"}),
    "software.offers.recompute_modules": ("fsdp", [], {"parallel.recompute": "selective", "parallel.recompute_modules": "layernorm"}),
    "software.offers.recompute_layers": ("fsdp", False, {"parallel.recompute_layers": 4}),
    "parallel.recompute_modules": ("piped", "layernorm", {"parallel.recompute": "selective"}),
    "parallel.recompute_layers": ("fsdp", 4),
    "software.offers.offload": ("fsdp", ["weights"], {"parallel.offload_optimizer": 1.0}),
    "software.offers.offload_with_pipelines": ("piped", [], {"parallel.offload_optimizer": 1.0}),
    "parallel.offload_activations": ("fsdp", 0.5, {"software.enforce": False}),
    "parallel.offload_optimizer": ("fsdp", 0.5),
    "parallel.offload_weights": ("fsdp", 0.5),
    "hw.architecture": ("piped", "volta"),
    "software.measured": ("piped", []),
    "software.served": ("served", []),
    "software.flash_kernels": ("piped", []),
    "software.fp8_cast_passes": ("fp8", 3.0),
    "software.cp_overlap": ("fsdp", 0.0),
    "software.pp_overlap": ("piped", 0.1),
    "software.scatter_overlap": ("piped", 0.0),
    "software.all_reduce_overlap": ("piped", 0.9, {"parallel.zero": 0}),
    "software.gradient_bucket_per_rank": ("piped", 1e9),
    "software.fragmentation": ("piped", 1.5),
    "software.logged_stage": ("piped", "first", {"parallel.vpp": 1, "parallel.schedule": "gpipe", "software.enforce": False}),
    "software.offers.workloads": ("piped", ["inference"]),
    "software.offers.parallelisms": ("piped", ["tp"]),
    "software.offers.schedules": ("piped", ["1f1b"]),
    "software.offers.zero": ("fsdp", [0, 1]),
    "software.offers.zero_with_pipelines": ("piped", [0]),
    "software.offers.shard_group": ("fsdp", [], {"parallel.shard_group": 4}),
    "software.offers.sequence_parallel": ("piped", [False]),
    "software.offers.recompute": ("piped", ["none"]),
    "software.offers.precisions": ("fp8", ["bf16"]),
    "software.offers.attention_dp_of": ("served", ["dense"], {"parallel.attention_dp": 2, "hw.num_gpus": 4}),
    "software.offers.kv_precisions": ("served", ["fp8"], {"workload.kv_precision": "bf16"}),
    "software.enforce": ("piped", False, {"software.offers.parallelisms": ["tp"]}),
    "software.reduce_each_micro_batch": ("fsdp", False),
    "cluster.trees": ("many", True),
    "cluster.all_reduce_wait": ("many", 1e-3),
    "hw.tensor_flop_per_sm_clock.fp8": ("fp8", 16384.0),
    "hw.energy.flop.fp8": ("fp8", 1.08e-12),
    "hw.launch_pace": ("wide", 2.8),
    "model.num_experts_per_tok": ("experts", 16),
    "model.moe_intermediate_size": ("experts", 1536),
    "model.n_shared_experts": ("experts", 2),
    "workload.expert_capacity": ("experts", 1),
    "workload.expert_imbalance": ("experts", 2.0),
    "software.dispatcher": ("experts", "allgather"),
    "software.routing_norm": ("experts", 6.0),
    "software.permutation": ("experts", "fused"),
    "software.expert_products": ("experts", "grouped"),
    "software.expert_weighting": ("experts", "output"),
    "software.fp8_recipe": ("fp8", "tensorwise"),
    "software.fp8_parameters": ("fp8", False),
    "software.fp8_library": ("fp8", "torchao"),
    "software.pipeline_split": ("slow", "megatron"),
    "software.gather_calls_per_layer": ("reduced", 0.5),
    "software.parameter_gather_overlap": ("reduced", 0.6),
    "software.host_pace": ("wide", 0.5),
    "software.tp_overlap": ("wide", 1.0),
    "software.fused_softmax": ("unfused", False),
    "software.dp_overlap": ("fsdp", 0.4),
    "cluster.node_skew": ("wide", 1e-4),
    "cluster.host_slowdown": ("slow", 40.0),
    "cluster.memory_taken": ("piped", 84e9),
    "cluster.allreduce_busbw": ("piped", {2: 100}),
    "backend.engine": ("simulated", "astrasim"),
    "backend.astrasim.binary": ("simulated", "no/such/program", {"backend.engine": "astrasim"}),
}
# Names that files give themselves, by which results are told apart; and what needs ASTRA-sim's program, or its stand-in.
ELSEWHERE = {"model.name", "software.name", "software.known", "cluster.name", "backend.astrasim.timeout"}


def leaves(part: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Key, type and value of each leaf of the schema; of network dimensions the first two; the measured runs behind a profile as one
    (tests/test_trust.py and test_served_trust.py have what each of their fields changes)."""
    for name, info in keys_of(type(part)).items():
        key, value = f"{prefix}{name}", value_of(part, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{key}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel) and name not in ("measured", "served"):
            for index, each in enumerate(value[:2]):
                yield from leaves(each, f"{key}.{index}.")
        elif isinstance(value, dict):
            yield from ((f"{key}.{name}", info.annotation, each) for name, each in value.items())
        else:
            yield key, info.annotation, value


def others(annotation: Any, value: Any) -> list[Any]:
    """Values that a key might have in the place of this one; what its bounds do not allow is among them."""
    if isinstance(value, bool):
        return [not value]
    named = [each for each in _names(annotation) if each != value]
    if isinstance(value, int):
        return [*named, value * 2, value + 1, value // 2]
    if isinstance(value, float):
        return [*named, value * 2, value / 2, 0.5, 0.9]
    return [*named, 1, 2, 4, 0.5, 1000] if value is None else named


def _names(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _names(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [name for part in get_args(annotation) for name in _names(part)]
    return [True, False] if annotation is bool else []


@cache
def _base(options: tuple[tuple[str, str], ...]) -> Any:
    with hydra_ready():
        return composed(dict(options)).tree


def outcome(name: str, changes: dict[str, Any]) -> str:
    """All that comes of a trial, as text; ``ValueError`` where it is refused."""
    options, values = TRIALS[name]
    scenario, broken = scenario_of(with_values(_base(tuple(options.items())), values | changes))
    if broken:
        raise ValueError(broken)
    layouts, rule, reasons, _ = layouts_of(Setting(scenario, None, {}, {}), {})
    if rule[0] >= 0:
        raise ValueError(reasons[rule[0]])
    priced = price(scenario, layouts)
    columns = {each.name: np.asarray(getattr(priced, each.name)).tolist() for each in fields(Priced)}
    files = sorted({path.suffix for path in Path().rglob("*") if path.is_file()}) if scenario.backend.artifacts.wanted else []
    peaks = logged_peak(scenario, layouts).tolist() if scenario.workload.kind == "training" else []
    return repr((judged(scenario, layouts, vars(priced)).expected_error.tolist(), columns, files, peaks))


@cache
def unchanged(name: str) -> tuple[str, tuple[tuple[str, Any, Any], ...]]:
    """What comes of a trial as it is, and its leaves."""
    options, values = TRIALS[name]
    scenario, _ = scenario_of(with_values(_base(tuple(options.items())), values))
    return outcome(name, {}), tuple(leaves(scenario))


def _keys() -> list[str]:
    with_all = {
        key: None
        for name in ("piped", "fp8", "fp4")
        for key, _, _ in leaves(scenario_of(with_values(_base(tuple(TRIALS[name][0].items())), {}))[0])
    }
    return [key for key in with_all if key.split(".")[0] not in ("search", "debug") and key not in ELSEWHERE]


@pytest.mark.parametrize("key", _keys())
def test_a_key_changes_a_result_or_is_refused(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ASTRA_SIM_BIN", raising=False)
    if key in SHOWN:
        name, value, *beside = SHOWN[key]
        assert _tells(name, {key: value}, *beside)
        return
    for name in TRIALS if not key.startswith("backend.") else ["simulated"]:
        for found, annotation, value in unchanged(name)[1]:
            if found == key and any(_tells(name, {key: other}) for other in others(annotation, value)):
                return
    raise AssertionError(f"{key}: no value of those tried changes a result of a trial, or is refused")


def _tells(name: str, changes: dict[str, Any], beside: dict[str, Any] | None = None) -> bool:
    """Whether the changes change what comes of a trial, or are refused as such: not for their type or bounds."""
    after = _answer(name, (beside or {}) | changes)
    return after != (_beside(name, repr(beside)) if beside else unchanged(name)[0]) and not re.match("refused: .* expected ", after)


@cache
def _beside(name: str, changes: str) -> str:
    """What comes of a trial with what is set beside a key."""
    return _answer(name, ast.literal_eval(changes))


def _answer(name: str, changes: dict[str, Any]) -> str:
    try:
        return outcome(name, changes)
    except ValueError as error:
        return f"refused: {error}"


@pytest.mark.parametrize("name", [*Search.model_fields, *(f"debug.{name}" for name in Debug.model_fields)])
def test_a_setting_of_searches_is_read_where_they_run(name: str) -> None:
    sources = [path.read_text() for path in (Path(__file__).parent.parent / "rapid_dse/sweep").rglob("*.py")]
    sources.append((Path(__file__).parent.parent / "hydra_plugins/rapid_dse_plugins/_sweep.py").read_text())
    part, field = name.split(".") if "." in name else ("search", name)
    used = rf'\b_?{part}\.{field}\b|\["{part}"\]\["{field}"\]|\.get\("{part}", {{}}\)\.get\("{field}"\)'
    assert any(re.search(used, source) for source in sources)


IN_VAIN = [
    (("search.sampler=nsga2", "search.n_trials=5", "search.seed=1"), ("-m",), ["search.sampler", "search.n_trials", "search.seed"]),
    (("search.refine_backend=hybrid", "backend.network=fair"), ("-m",), ["search.refine_backend", "backend.network"]),
    (("hydra/launcher=basic", "hydra.sweep.dir=x", "hydra.run.dir=x", "hydra.verbose=true"), ("-m",), ["hydra/launcher", "hydra.sweep.dir",
      "hydra.run.dir", "hydra.verbose"]),
    (("hydra.run.dir=x", "search.top=3", "debug.hw_snapshots=true"), (), ["hydra.run.dir", "search.top", "debug.hw_snapshots"]),
    (("software.fused_softmax=false", "software.fp8_cast_passes=2", "hw.measured_table=x.csv"), (), ["software.fused_softmax",
      "software.fp8_cast_passes", "hw.measured_table"]),
    (("software.attention=flash,unfused", "software.fused_softmax=false"), ("-m",), []),  # it has one in half of the sweep
    (("search=optuna", "search.sampler=random", "search.n_trials=2", "parallel.pp=all"), ("-m",), []),
    (("backend=full_astrasim_flattened", "backend.network=fair", "model.num_hidden_layers=2"), (), []),
    (("parallel=all", "parallel.pp=1"), ("-m",), []),  # not etp, which only the option names
    (("parallel.etp=all", "parallel.pp=1"), ("-m",), ["parallel.etp"]),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "flags", "said"), IN_VAIN, ids=[each[0][0] for each in IN_VAIN])
def test_what_was_set_in_vain_is_said(settings: tuple[str, ...], flags: tuple[str, ...], said: list[str], tmp_path: Path) -> None:
    small = ("model=llama3_1_8b", "hw.num_gpus=8", "parallel.tp=8", "workload.global_batch_size=8")
    ended = program.done(tmp_path, *flags, *small, *settings)
    assert [line.split(" has no effect here: ")[0] for line in ended.err.splitlines() if " has no effect here: " in line] == said


# Requests of which each key of a framework, a cluster, a layout or the backend's streams changes one, or it is said that it has no effect.
ASKED = ("static", "served", "full", "experts_served", "across", "eager")
GROUPS = ("software.", "cluster.", "parallel.", "backend.streams")
# What shows elsewhere: where something is not offered; in models with LayerNorm (the images); numbers, which are refused.
UNSEEN = {"software.enforce", "software.offers.workloads", "software.eager", "parallel.zero"}


@cache
def _scenario(name: str) -> Scenario:
    return scenario_of(with_values(_base(tuple(TRIALS[name][0].items())), TRIALS[name][1]))[0]


def _said(name: str, key: str) -> bool:
    return bool(in_vain(_scenario(name), [key], "trial"))


def _in_inference() -> list[str]:
    return [key for key, _, _ in unchanged("static")[1] if key.startswith(GROUPS) and key not in ELSEWHERE]


def _tried(name: str, key: str) -> list[Any]:
    ((annotation, value),) = [each for found, *each in unchanged(name)[1] if found == key]
    return ([SHOWN[key][1]] if key in SHOWN else []) + others(annotation, value)


@pytest.mark.parametrize("key", _in_inference())
def test_a_key_has_an_effect_in_inference_or_it_is_said_that_it_has_none(key: str) -> None:
    said = {name: _said(name, key) for name in (*ASKED, "images")}
    for name in ("static", "images"):
        answers = [_answer(name, {key: other}) for other in _tried(name, key)[:2]] if said[name] else []
        assert all(answer == unchanged(name)[0] or answer.startswith("refused: ") for answer in answers)
    if key in UNSEEN or all(said[name] for name in ASKED):
        return
    beside = SHOWN[key][2] if len(SHOWN.get(key, ())) > 2 else {}
    for name in (name for name in ASKED if not said[name]):
        if any(_tells(name, {key: other}, added) for other in _tried(name, key) for added in (None, beside)[: 1 + bool(beside)]):
            return
    raise AssertionError(f"{key} changes no request of those tried, and nothing says so")


def test_a_key_of_inference_is_refused_in_training(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("workload.prompt_len,parallel.tp\n,8\n512,8\n")
    program.done(tmp_path, "cases.csv", "--out", "out.csv", module="rapid_dse.evaluate")
    out = (tmp_path / "out.csv").read_text().splitlines()
    assert "workload.prompt_len=512 has no effect with workload.kind=training" in out[2]
    assert "has no effect" not in out[1]


def test_columns_of_a_table_that_change_nothing_are_named(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text(
        "search.top,software.fp8_recipe,workload.precision,software.fp8_cast_passes,parallel.tp\n3,delayed,fp8,,8\n,rowwise,bf16,2,8\n"
    )
    ended = program.done(tmp_path, "cases.csv", "--out", "out.csv", module="rapid_dse.evaluate")
    named = [line.split(" has no effect here: ")[0] for line in ended.err.splitlines()]
    assert named == ["search.top", "software.fp8_cast_passes"]  # the recipe has an effect in the first row


def test_values_of_a_sweep_keep_their_keys_as_columns() -> None:
    scenario, _ = scenario_of(_base(tuple(LLAMA.items())))
    assert value_at(scenario, "hw.gpus_per_node") == 8
