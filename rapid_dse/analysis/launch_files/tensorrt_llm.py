"""TensorRT-LLM: the options of its LLM API, a YAML that ``trtllm-serve MODEL --extra_llm_api_options FILE`` takes (llmapi/llm_args.py)."""

from __future__ import annotations

import math
from typing import Any

from rapid_dse.analysis.launch_files.field_table import Entry, FieldsRead, LaunchedRun, NamedChoice, SameNumber, TwoWays, constant
from rapid_dse.analysis.launch_files.file_forms import YAML
from rapid_dse.analysis.launch_files.framework import LaunchFramework
from rapid_dse.analysis.launch_files.serving_entries import longest, share


def _write_degrees(run: LaunchedRun) -> dict[str, Any]:
    """``tensor_parallel_size`` are the GPUs of a stage: attention is cut over all of them, or each has a copy of it."""
    copies, tp, experts = run["parallel.attention_dp"], run["parallel.tp"], run["model.num_experts"]
    said: dict[str, Any] = {"tensor_parallel_size": tp * copies, "pipeline_parallel_size": run["parallel.pp"]}
    said |= {"enable_attention_dp": copies > 1} if copies == 1 or tp == 1 else {}
    return said | ({"moe_expert_parallel_size": run["parallel.ep"], "moe_tensor_parallel_size": run["parallel.etp"]} if experts else {})


def _read_degrees(fields: FieldsRead) -> dict[str, Any]:
    wide, pp = fields.number("tensor_parallel_size", default=1), fields.number("pipeline_parallel_size", default=1)
    copied = fields.flag("enable_attention_dp")
    said = {"parallel.pp": pp, "parallel.tp": 1 if copied else wide, "parallel.attention_dp": wide if copied else 1}
    ep, etp = fields.number("moe_expert_parallel_size"), fields.number("moe_tensor_parallel_size")
    return said | ({"parallel.ep": ep} if ep else {}) | ({"parallel.etp": etp} if etp else {})


def _write_graphs(run: LaunchedRun) -> dict[str, Any]:
    return {"cuda_graph_config": None} if run["software.cuda_graphs"] == "none" else {"cuda_graph_config.enable_padding": True}


def _read_graphs(fields: FieldsRead) -> dict[str, Any]:
    inside = [name for name in fields.fields if name.startswith("cuda_graph_config.")]
    fields.used.update(inside)
    return {} if inside or fields.take("cuda_graph_config", default=math.nan) is not None else {"software.cuda_graphs": "none"}


TABLE: tuple[Entry, ...] = (
    constant(backend="pytorch"),
    TwoWays(_write_degrees, _read_degrees),
    SameNumber("software.max_num_seqs", "max_batch_size"),
    SameNumber("software.max_batched_tokens", "max_num_tokens"),
    longest("max_seq_len"),
    NamedChoice("software.scheduler", "enable_chunked_prefill", {"mixed": False, "chunked": True}),
    share("software.memory_fraction", "kv_cache_config.free_gpu_memory_fraction"),
    NamedChoice("workload.kv_precision", "kv_cache_config.dtype", {None: "auto", "fp8": "fp8", "fp4": "nvfp4"}),
    TwoWays(_write_graphs, _read_graphs),
)

TENSORRT_LLM = LaunchFramework(
    name="tensorrt_llm",
    title="TensorRT-LLM",
    profiles=("tensorrt_llm", "nim"),
    form=YAML,
    table=TABLE,
    idle=(
        *("print_iter_log", "disable_overlap_scheduler", "trust_remote_code", "tokenizer", "moe_config", "cache_transceiver_config"),
        *("kv_cache_config.enable_block_reuse", "kv_cache_config.tokens_per_block", "enable_iter_perf_stats", "log_level"),
    ),
    kind="inference",
    elsewhere={
        "model": "trtllm-serve MODEL",
        "workload.precision": "the checkpoint's own quantization",
        "workload": "python -m tensorrt_llm.serve.scripts.benchmark_serving, or trtllm-bench",
        "hw.num_gpus": "as many servers as there are engines",
        "parallel": "no option of the LLM API has it",
    },
)
