"""Single kernels, predicted against measured: how far the operator models are from what others timed, over all shapes.

A table has the columns of ``kernels.csv`` (``kind, hw, m, n, k, batch, seq_len, heads, head_dim, causal, impl, note,
measured.time_s`` …) or of ``kernels_fwd_bwd_a100.csv``; ``read_kernels`` brings the second into the form of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from rapid_dse.analysis.error_figures import error_figures
from rapid_dse.analysis.small_kernels import predict_small, row_kernel
from rapid_dse.config.hardware import PRECISION_BYTES, Hardware
from rapid_dse.config.software import LibraryGeneration
from rapid_dse.config.table_file import read_table
from rapid_dse.config.units import shortened
from rapid_dse.device import AttentionCall, AttentionSizes, FloatArray, operator_model
from rapid_dse.device.contract import UNFUSED, AttentionKernel, Direction

PredictCollectives = Callable[[pd.DataFrame, Hardware], FloatArray]
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "send_recv", "all_to_all", "broadcast")

# What a harness adds to the device's time, s. "host wall clock incl. launch+sync" is LLMCompass's: a Python call, a launch and a
# synchronisation around one kernel, which its smallest kernels of each kind show alone (8192 × 64 × 64; 4096 × 32; 1024 values).
HOST_CLOCK = {"gemm": 25e-6, "softmax": 11.5e-6, "layernorm": 46e-6, "gelu": 46e-6}
HOST_CLOCK_NOTES = ("host wall clock", "incl. launch overhead", "one GPT-3 175B layer")
KERNEL_OF: dict[str, AttentionKernel] = {
    "FlashAttention-1": "flash1",
    "FlashAttention-2": "flash2",
    "FlashAttention-3": "flash3",
    "cuDNN": "cudnn",
    "Triton": "triton",
    "mem-efficient (CUTLASS)": "efficient",
    "PyTorch": "unfused",
}
# Vidur profiled on Azure's NC96ads A100 v4, whose A100 are the PCIe card (300 W); its times agree with SimuMax's of that card.
CARDS = {"microsoft/vidur data/profiling/compute/a100": "a100_pcie"}
# Libraries of a table's rows whose ``year`` is not said: the figures that FlashAttention's repository publishes are of 2023 and 2024, and
# SimuMax measured its A100 under the Transformer Engine of that time.
EARLY_SOURCES = ("Dao-AILab/flash-attention", "MooreThreads/SimuMax")
LIBRARY_GENERATIONS: tuple[LibraryGeneration, ...] = ("early", "current")
EARLY_YEARS = 2024  # and before: libraries of the early generation
GPUS = {"A100-PCIe-80GB": "a100_pcie"}
ATTENTION: dict[str, tuple[Direction, ...]] = {
    "attention_fwd": ("forward",),
    "attention_bwd": ("backward",),
    "attention_fwd_bwd": ("forward", "backward"),
    "attention_decode": ("forward",),
}


def read_kernels(path: str | Path) -> pd.DataFrame:
    """A table of measured kernels with a ``chip`` column: the chip's name under conf/hw.

    Raises:
        ValueError: a table without the columns that say what was measured, or a time that is not a number above 0.
    """
    return with_chips(read_table(path), path)


def with_chips(table: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """A table of measured kernels, read from ``path``, in the form of ``read_kernels``, which see."""
    table = table.copy()
    if "time_ms_derived" in table:
        table = table.rename(columns={"gpu": "hw", "layout_or_stage": "layout"})
        table["hw"] = table["hw"].replace(GPUS)
        table["measured.time_s"] = table["time_ms_derived"] * 1e-3
    missing = sorted({"kind", "hw", "measured.time_s"} - set(table.columns))
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; a table of kernels has kind, hw, measured.time_s and the shape")
    seconds = pd.to_numeric(table["measured.time_s"], errors="coerce")
    wrong = np.flatnonzero(table["measured.time_s"].notna() & ~(np.isfinite(seconds) & (seconds > 0)))
    if len(wrong):
        value = table["measured.time_s"].tolist()[wrong[0]]
        raise ValueError(f"{path}: row {wrong[0] + 1}: measured.time_s={shortened(value)}; expected a number above 0 (seconds)")
    table["chip"] = table["hw"]
    if "source" in table:
        for prefix, chip in CARDS.items():
            table.loc[table["source"].astype(str).str.startswith(prefix), "chip"] = chip
    return table


def predict_kernels(
    table: pd.DataFrame, chips: Mapping[str, Hardware], predict_collectives: PredictCollectives | None = None
) -> FloatArray:
    """Predicted seconds of each row, (n,); NaN where the chip is not in ``chips`` or nothing here prices the kind.

    Args:
        table: what ``read_kernels`` returns.
        chips: chip by name; a card that is missing is taken for the chip that the table's ``hw`` names.
        predict_collectives: prices rows of collective kinds, (rows, chip) -> seconds; null leaves them NaN.

    Raises:
        ValueError: a column that rows of some kind need is missing, or holds what is not a number.
    """
    chip = table["chip"].where(table["chip"].isin(list(chips)), table["hw"])
    predicted = np.full(len(table), np.nan)
    group = chip.astype(str) + "|" + table["kind"].astype(str)
    for key, rows in table.groupby(group).indices.items():
        name, kind = str(key).split("|", 1)
        if name in chips:
            try:
                predicted[rows] = _predict_kind(kind, table.iloc[rows], chips[name], predict_collectives)
            except KeyError as error:
                raise ValueError(f"rows of kind={kind} need a column that the table lacks: {error.args[0]}") from None
    return predicted


def generations(rows: pd.DataFrame) -> pd.Series[str]:
    """The generation of the libraries that each row was measured with, by its ``year`` or its source; current where neither says."""
    generation = pd.Series("current", index=rows.index)
    if "source" in rows:
        generation[rows["source"].astype(str).str.startswith(EARLY_SOURCES)] = "early"
    if "year" in rows:
        generation[pd.to_numeric(rows["year"], errors="coerce") <= EARLY_YEARS] = "early"
    return generation


def _predict_kind(kind: str, rows: pd.DataFrame, hw: Hardware, predict_collectives: PredictCollectives | None) -> FloatArray:
    generation = generations(rows)
    out = np.full(len(rows), np.nan)
    for name in LIBRARY_GENERATIONS:
        part = (generation == name).to_numpy(bool)
        if part.any():
            out[part] = _predict_generation(kind, rows[part], hw, name, predict_collectives)
    return out


def _predict_generation(
    kind: str, rows: pd.DataFrame, hw: Hardware, generation: LibraryGeneration, predict_collectives: PredictCollectives | None
) -> FloatArray:
    if kind in COLLECTIVES or kind.startswith("gpt3_layer_op:AllReduce"):
        return predict_collectives(rows, hw) if predict_collectives else np.full(len(rows), np.nan)
    if kind in ("gemm", "matmul", "group_matmul"):
        return _gemm(rows, hw) + _harness(rows, "gemm")
    if kind in ("softmax", "layernorm", "gelu"):
        return predict_small(kind, rows, hw, generation) + _harness(rows, kind)
    if kind in ATTENTION:
        return _attention(rows, hw, ATTENTION[kind], generation, decode=kind == "attention_decode")
    if kind in ("sdp_fwd", "sdp_bwd"):
        return _sdp(rows, hw, generation, backward=kind == "sdp_bwd")
    if kind.startswith("gpt3_layer_op:"):
        return _gpt3_layer(kind.removeprefix("gpt3_layer_op:"), rows, hw, generation)
    return predict_small(kind, rows, hw, generation)


def _harness(rows: pd.DataFrame, kind: str) -> FloatArray:
    notes = rows["note"].astype(str) if "note" in rows else pd.Series("", index=rows.index)
    hosted = notes.str.contains("|".join(HOST_CLOCK_NOTES)).to_numpy(bool)
    return np.where(hosted, HOST_CLOCK[kind], 0.0)


def precisions(rows: pd.DataFrame) -> pd.Series[str]:
    """The precision that each row names first, whatever its source adds ("fp16 (default)", "bf16/fp16"); bf16 where it names none."""
    if "precision" not in rows:
        return pd.Series("bf16", index=rows.index)
    return rows["precision"].astype(str).str.extract(f"({'|'.join(PRECISION_BYTES)})", expand=False).fillna("bf16")


def _gemm(rows: pd.DataFrame, hw: Hardware) -> FloatArray:
    """Seconds of products, each in its own precision; NaN where the chip lacks it. Weight gradients accumulate in fp32, as a framework's
    do, but for those of a plain ``torch.mm``, which writes what it computes."""
    model, precision = operator_model(hw), precisions(rows)
    groups = rows["num_groups"].fillna(1).to_numpy(float) if "num_groups" in rows else np.ones(len(rows))
    weight = rows["layout"].astype(str).str.contains("wgrad|bwd_grad_w").to_numpy(bool)
    if "impl" in rows:
        weight = weight & ~rows["impl"].astype(str).str.startswith("torch.mm").to_numpy(bool)
    out = np.full(len(rows), np.nan)
    for name in set(precision) & set(hw.precisions):
        for accumulate in (False, True):
            part = (precision == name).to_numpy(bool) & (weight == accumulate)
            shape = rows.loc[part, ["m", "n", "k"]].to_numpy(float).T
            out[part] = model.gemm(*shape, batch=groups[part], precision=name, accumulate=accumulate)
    return out


def _attention(
    rows: pd.DataFrame, hw: Hardware, directions: tuple[Direction, ...], generation: LibraryGeneration, *, decode: bool = False
) -> FloatArray:
    """Seconds of attention, forward, backward or both; NaN for an implementation that is none of ``KERNEL_OF``. ``decode``: one query
    sees the ``context`` keys before it."""
    model = operator_model(hw)
    causal = rows["causal"].astype(str).str.lower().isin(("true", "1", "1.0")).to_numpy(bool)
    keys = "context" if decode else "seq_len"
    shape = rows.reindex(columns=["batch", "heads", "kv_heads", keys, "head_dim", "v_head_dim"]).astype(float)
    shape = shape.fillna({"kv_heads": shape["heads"], "v_head_dim": shape["head_dim"]})
    batch, heads, kv_heads, length, width, v_width = shape.to_numpy().T
    queries = np.ones_like(length) if decode else length
    out = np.full(len(rows), np.nan)
    for implementation, kernel in KERNEL_OF.items():
        for masked in (False, True):
            part = (rows["impl"] == implementation).to_numpy(bool) & (causal == masked)
            if kernel not in (*hw.attention_kernels, *UNFUSED):
                continue
            columns = [array[part] for array in (batch, heads, kv_heads, queries, length, width, v_width)]
            sizes = replace(AttentionSizes(*columns), causal=masked)
            calls = [AttentionCall(way, kernel, generation=generation) for way in directions]
            out[part] = np.sum([model.attention(sizes, call) for call in calls], axis=0)
    return out


def _sdp(rows: pd.DataFrame, hw: Hardware, generation: LibraryGeneration, *, backward: bool) -> FloatArray:
    columns = ["batch", "heads", "kv_heads", "seq_len", "seq_len", "qk_head_dim", "v_head_dim"]
    return operator_model(hw).attention(
        AttentionSizes(*rows[columns].to_numpy(float).T),
        AttentionCall("backward" if backward else "forward", generation=generation),
    )


GPT3_TP = 4


def _gpt3_layer(operator: str, rows: pd.DataFrame, hw: Hardware, generation: LibraryGeneration) -> FloatArray:
    """LLMCompass's layer of GPT-3 on four GPUs: the table's m, n, k are one GPU's; Q, K and V are three products."""
    model = operator_model(hw)
    heads = rows["heads"].to_numpy(float) / GPT3_TP
    batch = rows["batch"].to_numpy(float)
    decoding = rows["note"].str.contains("decode").to_numpy(bool)
    queries = np.where(decoding, 1.0, 2048.0)
    keys = np.where(decoding, 3072.0, 2048.0)
    width = rows["head_dim"].to_numpy(float)
    tokens, hidden = batch * queries, rows["heads"].to_numpy(float) * width
    if operator == "Q_mul_K":
        return model.gemm(queries, keys, width, batch=batch * heads) + HOST_CLOCK["gemm"]
    if operator == "A_mul_V":
        return model.gemm(queries, width, keys, batch=batch * heads) + HOST_CLOCK["gemm"]
    if operator == "Softmax":
        return row_kernel(hw, "softmax", batch * heads * queries, keys, generation) + HOST_CLOCK["softmax"]
    if operator.startswith("LayerNorm"):
        return row_kernel(hw, "layernorm", tokens, hidden, generation) + HOST_CLOCK["layernorm"]
    if operator == "GeLU":
        return model.elementwise(tokens * 4 * hidden / GPT3_TP * 2 * 2) + HOST_CLOCK["gelu"]
    shape = rows[["m", "n", "k"]].to_numpy(float).T
    if operator == "Q_K_V":
        return 3 * (model.gemm(shape[0], shape[1] / 3, shape[2]) + HOST_CLOCK["gemm"])
    return model.gemm(*shape) + HOST_CLOCK["gemm"]


def error_table(table: pd.DataFrame, predicted: FloatArray, by: tuple[str, ...] = ("kind", "hw")) -> pd.DataFrame:
    """Errors of predicted / measured − 1 by group: ``n``, ``mape``, ``median``, ``p90`` (of the absolute error) and ``bias`` (mean).

    Rows without a prediction are counted as ``unpriced`` and in no error.
    """
    error = predicted / table["measured.time_s"].to_numpy(float) - 1
    lines = table[list(by)].assign(error=error, unpriced=np.isnan(error))
    return error_figures(lines, by, sort=True).assign(unpriced=lines.groupby(list(by))["unpriced"].sum())
