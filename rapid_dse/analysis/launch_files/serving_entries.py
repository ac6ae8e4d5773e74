"""What servers' flags share: numbers of the scheduler, data types, and what a benchmark client sends."""

from __future__ import annotations

import math
from typing import Any

from rapid_dse.analysis.launch_files.field_table import Entry, FieldsRead, LaunchedRun, SameNumber, TwoWays

CLIENT = (
    "--dataset-name",
    "--random-input-len",
    "--random-output-len",
    "--random-range-ratio",
    "--max-concurrency",
    "--request-rate",
    "--num-prompts",
)


def client(spread: bool) -> tuple[Entry, ...]:
    """The benchmark's flags; ``spread``: whether its lengths are uniform in mean · (1 ± ratio), as here."""

    def write(run: LaunchedRun) -> dict[str, Any]:
        said: dict[str, Any] = {"--dataset-name": "random"}
        if spread and run["workload.length_spread"]:
            said["--random-range-ratio"] = run["workload.length_spread"]
        if run["workload.request_rate"]:
            said["--request-rate"] = run["workload.request_rate"]
        return said

    def read(fields: FieldsRead) -> dict[str, Any]:
        fields.take("--dataset-name")
        rate, ratio = (_decimal(fields, name) for name in ("--request-rate", "--random-range-ratio"))
        said: dict[str, Any] = {"workload.request_rate": rate} if rate and math.isfinite(rate) else {}
        if ratio and not spread:
            fields.notes.append(f"--random-range-ratio={ratio:g}: lengths are taken as all alike")
        return said | ({"workload.length_spread": ratio} if ratio and spread else {})

    numbers = {"workload.prompt_len": "--random-input-len", "workload.decode_len": "--random-output-len"}
    numbers |= {"workload.concurrency": "--max-concurrency", "workload.num_prompts": "--num-prompts"}
    return (*(SameNumber(key, name) for key, name in numbers.items()), TwoWays(write, read))


def _decimal(fields: FieldsRead, name: str) -> float | None:
    try:
        value = fields.take(name)
        return None if value is None else float(value)
    except (TypeError, ValueError):
        fields.notes.append(f"{name}: is no number here")
        return None


def share(key: str, name: str) -> Entry:
    """A share of memory."""

    def read(fields: FieldsRead) -> dict[str, Any]:
        value = _decimal(fields, name)
        return {} if value is None else {key: value}

    return TwoWays(lambda run: {name: run[key]}, read)


def eager(name: str) -> Entry:
    """The switch that does without CUDA graphs."""

    def read(fields: FieldsRead) -> dict[str, Any]:
        return {"software.cuda_graphs": "none"} if fields.flag(name) else {}

    return TwoWays(lambda run: {name: run["software.cuda_graphs"] == "none"}, read)


def precisions(fp8_cache: str) -> Entry:
    """Data types of weights and of the cache; ``fp8_cache`` is the framework's word for 8-bit caches."""
    words = {"bf16": "bfloat16", "fp16": "float16"}

    def write(run: LaunchedRun) -> dict[str, Any]:
        precision, cache = run["workload.precision"], run["workload.kv_precision"]
        said: dict[str, Any] = {"--dtype": words[precision]} if precision in words else {"--dtype": "bfloat16"}
        said |= {"--quantization": "fp8"} if precision == "fp8" else {}
        return said | ({"--kv-cache-dtype": fp8_cache} if cache == "fp8" else {})

    def read(fields: FieldsRead) -> dict[str, Any]:
        dtype, quantized, cache = (
            fields.take("--dtype", default="auto"),
            fields.take("--quantization"),
            fields.take("--kv-cache-dtype", default="auto"),
        )
        precision = {"float16": "fp16", "half": "fp16"}.get(str(dtype), "bf16")
        if quantized not in (None, "fp8"):
            fields.notes.append(f"--quantization={quantized}: give workload.precision=…")
        said: dict[str, Any] = {"workload.precision": "fp8" if quantized == "fp8" else precision}
        return said | ({"workload.kv_precision": "fp8"} if str(cache).startswith("fp8") else {})

    return TwoWays(write, read)


def longest(name: str) -> Entry:
    """The longest request that the server takes: prompt and output of the longest that is sent."""

    def write(run: LaunchedRun) -> dict[str, Any]:
        whole = run["workload.prompt_len"] + run["workload.decode_len"]
        return {name: math.ceil(whole * (1 + run["workload.length_spread"]))}

    def read(fields: FieldsRead) -> dict[str, Any]:
        fields.take(name)
        return {}

    return TwoWays(write, read)
