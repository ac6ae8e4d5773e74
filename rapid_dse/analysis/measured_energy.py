"""Energy of loads on one GPU whose time was measured, predicted against measured: what the energy model says where time is no question.

A table of sustained loads has a load a row: ``op`` (``LOADS``), ``precision``, ``data`` (blank: random), ``impl`` (of attention), and of
one call ``flops, bytes`` (HBM), ``l2_bytes``, ``time_s``, ``energy_j``. A table of inference steps has a whole pass a row: ``net, phase``
(prefill, decode), ``batch, context`` (tokens of a prompt; cached ones), ``attn`` and the model's widths, ``time_s``, ``energy_j``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from rapid_dse.analysis.error_figures import error_figures
from rapid_dse.analysis.predicted_columns import llama_on_one_gpu
from rapid_dse.config.hardware import Hardware
from rapid_dse.cost.energy import ATTENTION_ROWS, attention_energy, gpu_energy, moved_energy, product_energy
from rapid_dse.device import FloatArray, operator_model
from rapid_dse.parallel.engines import Degrees
from rapid_dse.simulate.inference.passes import decode_work, prefill_work
from rapid_dse.simulate.inference.prompts import Prompts
from rapid_dse.sweep.cases import CaseGroup, group_cases

PREDICTED = "predicted.energy_j"
ATTENTION = {"flash_fwd": "flash2", "decode_attention": "flash2"}  # and the kernel that runs where ``impl`` names none
LOADS = ("idle", "gemm", "gemm_skinny", "gemm_k512", "copy_l2", "read_sum", *ATTENTION)
GROUP = 4.0  # queries that share a key in the decode load
OF_LOADS = ("hw", "op", "data", "duty", "flops", "bytes", "l2_bytes", "time_s", "energy_j")
WIDTHS = ("hidden", "heads", "kv_heads", "head_dim", "ffn", "layers")
OF_STEPS = ("hw", "net", "phase", "batch", "context", "attn", *WIDTHS, "time_s", "energy_j")
KERNELS = {"flash": "flash2", "cudnn": "cudnn"}
VOCABULARY = 128256  # of the nets that such tables have: Llama 3's


def is_loads(table: pd.DataFrame) -> bool:
    """Whether the table is one of sustained loads."""
    return set(OF_LOADS) <= set(table.columns)


def is_inference_steps(table: pd.DataFrame) -> bool:
    """Whether the table is one of passes of a whole model on one GPU."""
    return set(OF_STEPS) <= set(table.columns)


def unpredicted(table: pd.DataFrame) -> pd.Series[str]:
    """Why the energy of each row is not predicted; empty where it is."""
    reasons = pd.Series("", index=table.index)
    reasons[table["energy_j"].isna()] = "no energy was measured"
    if is_loads(table):
        reasons[~table["op"].isin(list(LOADS))] = f"op is none of {', '.join(LOADS)}"
        reasons[table["data"].isin(["zeros", "ones"])] = "zeros or ones switch fewer transistors than random operands"
    else:
        reasons[~table["phase"].isin(["prefill", "decode"]) | table["layers"].isna()] = reasons.where(
            reasons.ne(""), "no pass of a whole model"
        )
    return reasons


def predict_energy(table: pd.DataFrame, chips: Mapping[str, Hardware]) -> pd.DataFrame:
    """``predicted.energy_j``, NaN where it is not predicted.

    Raises:
        ValueError: a chip that conf/hw lacks, or a value that is none of its key's.
    """
    rows = table[unpredicted(table).eq("")]
    joules = pd.Series(np.nan, index=table.index)
    if is_loads(table):
        for chip, part in rows.groupby("hw"):
            joules[part.index] = _loads(chips[str(chip)], part)
    elif len(rows):
        for group in group_cases(_as_cases(rows)):
            part = rows.iloc[group.rows]
            joules[part.index] = _passes(group, part)
    return pd.DataFrame({PREDICTED: joules})


def energy_errors(table: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Errors of predicted / measured − 1 by load or phase: ``n``, ``mape``, ``median``, ``p90`` (absolute), ``bias``."""
    error = predicted[PREDICTED] / table["energy_j"] - 1
    lines = pd.DataFrame({"kind": table["op" if is_loads(table) else "phase"], "error": error}).dropna()
    return error_figures(pd.concat([lines.assign(kind="all"), lines]), ["kind"])


def _loads(hw: Hardware, rows: pd.DataFrame) -> FloatArray:
    """Joules of each load's call, whose time was measured."""
    flops, hbm_bytes, on_chip = (rows[name].fillna(0.0).to_numpy(float) for name in ("flops", "bytes", "l2_bytes"))
    dynamic = moved_energy(hw, hbm_bytes) + on_chip * hw.energy.l2
    for place, (op, precision, impl) in enumerate(
        zip(rows["op"], rows["precision"].astype(object).fillna("bf16"), rows["impl"], strict=True)
    ):
        kernel = KERNELS.get(str(impl), str(impl)) if isinstance(impl, str) else ATTENTION.get(op, "")
        paid = flops[place : place + 1] * (ATTENTION_ROWS / GROUP if op == "decode_attention" else 1.0)
        one = attention_energy(hw, precision, kernel, paid) if op in ATTENTION else product_energy(hw, precision, paid)
        dynamic[place] += one[0]
    return gpu_energy(hw, dynamic, rows["time_s"].to_numpy(float))


def _as_cases(rows: pd.DataFrame) -> pd.DataFrame:
    """Each row as the override keys of requests on one GPU."""
    columns = {
        **llama_on_one_gpu(rows),
        "model.vocab_size": VOCABULARY,
        "workload": "inference",
        "workload.prompt_len": rows["context"],
        "workload.decode_len": 2,
        "workload.batch_size": rows["batch"],
        "hw.num_gpus": 1,
        "software": "vllm",
        "software.flash_kernel": rows["attn"].map(KERNELS),
        "software.decode_attention": "shared",
    }
    return pd.DataFrame(columns, index=rows.index).reset_index(drop=True)


def _passes(group: CaseGroup, rows: pd.DataFrame) -> FloatArray:
    """Joules of each row's pass, whose time was measured; the rows are of one context."""
    scenario, batch = group.portion.scenario, rows["batch"].to_numpy(float)
    device, cut = operator_model(scenario.hw), Degrees(*(np.ones(len(rows), np.int64),) * 6)
    context, prefill = float(scenario.workload.lengths[0]), rows["phase"].eq("prefill").to_numpy()
    prompts = prefill_work(scenario, cut, batch, Prompts(context, context), device).joules
    joules = np.where(prefill, prompts, decode_work(scenario, cut, batch, device).joules)
    return gpu_energy(scenario.hw, joules, rows["time_s"].to_numpy(float))
