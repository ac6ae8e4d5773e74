"""vLLM: ``vllm serve`` and ``vllm bench serve`` (engine/arg_utils.py, benchmarks/)."""

from __future__ import annotations

from typing import Any

from rapid_dse.analysis.launch_files.field_table import Entry, FieldsRead, LaunchedRun, SameNumber, TwoWays
from rapid_dse.analysis.launch_files.file_forms import serving
from rapid_dse.analysis.launch_files.framework import LaunchFramework
from rapid_dse.analysis.launch_files.serving_entries import CLIENT, client, eager, longest, precisions, share


def _write_degrees(run: LaunchedRun) -> dict[str, Any]:
    """Data parallelism is attention's where experts are spread over the engine, else engines beside one another."""
    said: dict[str, Any] = {"--tensor-parallel-size": run["parallel.tp"], "--pipeline-parallel-size": run["parallel.pp"]}
    wide = run["parallel.tp"] * run["parallel.attention_dp"]
    if run["model.num_experts"] and run["parallel.ep"] == wide > 1:
        return said | {"--data-parallel-size": run["parallel.attention_dp"], "--enable-expert-parallel": True}
    return said | ({"--data-parallel-size": run["parallel.dp"]} if run["parallel.attention_dp"] == 1 else {})


def _read_degrees(fields: FieldsRead) -> dict[str, Any]:
    tp, pp = fields.number("--tensor-parallel-size", "-tp", default=1), fields.number("--pipeline-parallel-size", "-pp", default=1)
    copies = fields.number("--data-parallel-size", "-dp", default=1)
    said: dict[str, Any] = {"parallel.tp": tp, "parallel.pp": pp}
    if fields.flag("--enable-expert-parallel"):
        return said | {"parallel.attention_dp": copies, "parallel.ep": tp * copies}
    return said | {"parallel.dp": copies}


TABLE: tuple[Entry, ...] = (
    TwoWays(_write_degrees, _read_degrees),
    SameNumber("software.max_num_seqs", "--max-num-seqs"),
    SameNumber("software.max_batched_tokens", "--max-num-batched-tokens"),
    share("software.memory_fraction", "--gpu-memory-utilization"),
    eager("--enforce-eager"),
    precisions("fp8"),
    longest("--max-model-len"),
    *client(spread=True),
)

VLLM = LaunchFramework(
    name="vllm",
    title="vLLM",
    profiles=("vllm",),
    form=serving('vllm serve "$MODEL"', 'vllm bench serve --model "$MODEL"', CLIENT),
    table=TABLE,
    idle=(
        "--model",
        "model",
        "host",
        "port",
        "served-model-name",
        "trust-remote-code",
        "seed",
        "disable-log",
        "api-key",
        "tokenizer",
        "ignore-eos",
        "backend",
    ),
    kind="inference",
    elsewhere={
        "model": "the model that is served",
        "workload.batch_size": "vllm bench latency --batch-size",
        "workload.precision": "the checkpoint's own quantization",
        "hw.num_gpus": "as many servers as there are engines",
        "parallel": "no flag of vllm serve has it",
    },
)
