"""SGLang: ``sglang.launch_server`` and ``sglang.bench_serving`` (srt/server_args.py, bench_serving.py)."""

from __future__ import annotations

from typing import Any

from rapid_dse.analysis.launch_files.field_table import Entry, FieldsRead, LaunchedRun, SameNumber, TwoWays
from rapid_dse.analysis.launch_files.file_forms import serving
from rapid_dse.analysis.launch_files.framework import LaunchFramework
from rapid_dse.analysis.launch_files.serving_entries import CLIENT, client, eager, longest, precisions, share


def _write_degrees(run: LaunchedRun) -> dict[str, Any]:
    """``--tp-size`` are the GPUs of a stage, which attention's copies share; without those ``--dp-size`` are engines beside one another."""
    copies, tp = run["parallel.attention_dp"], run["parallel.tp"]
    said: dict[str, Any] = {"--tp-size": tp * copies, "--pp-size": run["parallel.pp"]}
    said |= {"--ep-size": run["parallel.ep"]} if run["model.num_experts"] else {}
    said["--max-running-requests"] = run["software.max_num_seqs"] * copies
    if copies > 1:
        return said | {"--dp-size": copies, "--enable-dp-attention": True}
    return said | {"--dp-size": run["parallel.dp"]}


def _read_degrees(fields: FieldsRead) -> dict[str, Any]:
    wide, pp = (
        fields.number("--tp-size", "--tensor-parallel-size", "--tp", default=1),
        fields.number("--pp-size", "--pipeline-parallel-size", default=1),
    )
    copies, ep = (
        fields.number("--dp-size", "--data-parallel-size", "--dp", default=1),
        fields.number("--ep-size", "--expert-parallel-size", "--ep"),
    )
    shared, most = fields.flag("--enable-dp-attention"), fields.number("--max-running-requests")
    said: dict[str, Any] = {"parallel.pp": pp} | ({"parallel.ep": ep} if ep else {})
    said |= (
        {"parallel.attention_dp": copies, "parallel.tp": max(1, wide // copies)} if shared else {"parallel.dp": copies, "parallel.tp": wide}
    )
    return said | ({"software.max_num_seqs": max(1, most // (copies if shared else 1))} if most else {})


TABLE: tuple[Entry, ...] = (
    TwoWays(_write_degrees, _read_degrees),
    SameNumber("software.max_batched_tokens", "--chunked-prefill-size"),
    share("software.memory_fraction", "--mem-fraction-static"),
    eager("--disable-cuda-graph"),
    precisions("fp8_e5m2"),
    longest("--context-length"),
    *client(spread=False),
)

SGLANG = LaunchFramework(
    name="sglang",
    title="SGLang",
    profiles=("sglang",),
    form=serving('python -m sglang.launch_server --model-path "$MODEL"', "python -m sglang.bench_serving --backend sglang", CLIENT),
    table=TABLE,
    idle=(
        "model-path",
        "host",
        "port",
        "served-model-name",
        "trust-remote-code",
        "log",
        "random-seed",
        "api-key",
        "tokenizer",
        "backend",
        "m",
    ),
    kind="inference",
    elsewhere={
        "model": "the model that is served",
        "workload.batch_size": "sglang.bench_one_batch --batch-size",
        "workload.precision": "the checkpoint's own quantization",
        "hw.num_gpus": "as many servers as there are engines",
        "parallel": "no flag of sglang.launch_server has it",
    },
)
