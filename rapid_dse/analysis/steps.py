"""Whole training steps on one GPU, phase by phase, predicted against measured.

A table has a step a row: the model's widths (``layers, hidden, heads, kv_heads, head_dim, ffn, vocab``; of one tensor-parallel rank
where they are divided), ``seq, mb, accum`` (micro-batches of a step), ``mode`` (eager, compile), ``recompute`` (none, full), ``head``
(embedding, head and loss run too, or the layers alone), ``opt`` (a key of ``OPTIMIZERS``), ``attn`` (a key of ``KERNELS``), ``fp8``,
``params``, and what was measured: ``fwd_time_s, bwd_time_s, opt_time_s`` (s), ``fwdbwd_time_s`` (all micro-batches together),
``time_s`` (the step), ``energy_j`` (J, the whole step), ``peak_allocated_bytes, peak_reserved_bytes``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rapid_dse.analysis.error_figures import error_figures
from rapid_dse.analysis.predicted_columns import llama_on_one_gpu, predicted_columns
from rapid_dse.cost.energy import gpu_energy, moved_energy
from rapid_dse.device import FloatArray, operator_model
from rapid_dse.events.backends import price
from rapid_dse.simulate.one_gpu import accumulation, accumulation_bytes, phases
from rapid_dse.sweep.cases import CaseGroup

SHAPE = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "seq", "mb", "accum")
NEEDED = ("hw", *SHAPE, "mode", "recompute", "head", "opt", "attn", "fp8", "params")
SOFTWARE = {"eager": "pytorch", "compile": "pytorch_compile"}
KERNELS = {"flash": "flash2", "cudnn": "cudnn"}
TIMES = ("fwd_time_s", "bwd_time_s", "opt_time_s", "fwdbwd_time_s", "time_s")
ENERGY = "energy_j"
PEAKS = ("peak_allocated_bytes", "peak_reserved_bytes")
FIGURES = (*TIMES, ENERGY, *PEAKS)
NO_VOCABULARY = 1  # padded to the least table that there is: it holds and does next to nothing
# Bytes at streaming speed of a number that is read in 32 bits and written in 16, and of one the other way round, whose kernel is slower
# (2.0 TB/s on an H200, by name in a step's profile): weights, and their gradients.
CAST, CAST_BACK = 6.0, 10.8
# Beside that autocast keeps the stream between layers in 32 bits. Bytes a number of it and layer more, forward and backward, at streaming
# speed. Eager: two norms read and write 32 bits, sums of 32 and 16 bits run at 2.7 TB/s, what norms give and what gradients reach is cast.
# Compiled, two fused kernels for norm and sum move 4 and 12 bytes more.
AUTOCAST_STREAM = {"eager": (35.0, 66.0), "compile": (4.0, 12.0)}


@dataclass(frozen=True)
class Optimizer:
    """An optimizer of one GPU's step.

    Attributes:
        hbm_bytes: HBM bytes a parameter that it reads and writes.
        state_bytes: bytes a parameter that it holds beside the 16-bit weight and its 16-bit gradient.
        casts: 32-bit weights under autocast, which casts them where they are used.
    """

    hbm_bytes: float
    state_bytes: float
    casts: bool = False


# none; AdamW on 16-bit weights with moments of 16 bits; on 32-bit copies of weights and gradients; on 32-bit weights under autocast,
# which keeps 16-bit copies of them.
OPTIMIZERS = {"none": Optimizer(0, 0), "bf16": Optimizer(14, 4), "master": Optimizer(44, 16), "amp": Optimizer(28, 14, casts=True)}


def is_steps(table: pd.DataFrame) -> bool:
    """Whether the table is one of whole steps on one GPU."""
    return set(NEEDED) <= set(table.columns)


def unpriced_steps(table: pd.DataFrame) -> pd.Series[str]:
    """Why each row is not predicted; empty where it is."""
    reasons = pd.Series("", index=table.index)
    for column, known in (("mode", SOFTWARE), ("attn", KERNELS), ("opt", OPTIMIZERS), ("recompute", ("none", "full"))):
        reasons[~table[column].isin(list(known))] = f"{column} is none of {', '.join(known)}"
    narrow = table["fp8"].astype(bool) & table["mode"].eq("eager")
    reasons[narrow] = "casts to fp8 of an eager script, which no framework runs like that"
    reasons[table[list(SHAPE)].isna().any(axis=1)] = "a width is missing"
    return reasons


def predict_steps(table: pd.DataFrame) -> pd.DataFrame:
    """``predicted.<column>`` for each of ``FIGURES`` that the table has, NaN where a row is not predicted.

    Raises:
        ValueError: a chip that conf/hw lacks, or a value that is none of its key's.
    """
    return predicted_columns(table, unpriced_steps(table), _as_cases, _predict, FIGURES)


def _as_cases(rows: pd.DataFrame) -> pd.DataFrame:
    """Each row as the override keys of a run on one GPU."""
    head, optimizers = rows["head"].astype(bool), rows["opt"].map(lambda name: OPTIMIZERS[name])
    columns = {
        **llama_on_one_gpu(rows),
        "model.vocab_size": rows["vocab"].where(head, NO_VOCABULARY),
        "workload.seq_len": rows["seq"],
        "workload.global_batch_size": rows["mb"] * rows["accum"],
        "workload.precision": np.where(rows["fp8"].astype(bool), "fp8", "bf16"),
        "parallel.micro_batch_size": rows["mb"],
        "parallel.recompute": rows["recompute"],
        "parallel.zero": 0,
        "hw.num_gpus": 1,
        "software": rows["mode"].map(SOFTWARE),
        "software.flash_kernel": rows["attn"].map(KERNELS),
        "software.optimizer_bytes": optimizers.map(lambda name: name.state_bytes),
    }
    return pd.DataFrame(columns, index=rows.index).reset_index(drop=True)


def _predict(group: CaseGroup, rows: pd.DataFrame) -> dict[str, FloatArray]:
    """Seconds, joules and bytes of a group's rows, by column."""
    portion, head = group.portion, rows["head"].to_numpy(bool)
    if (portion.rule >= 0).any():
        raise ValueError(portion.reasons[int(portion.rule[portion.rule >= 0][0])])
    phase_times = phases(portion.scenario, portion.layouts, head)
    forward, backward = phase_times.forward, phase_times.backward
    device, parameters = operator_model(portion.scenario.hw), rows["params"].to_numpy(float)
    optimizers = [OPTIMIZERS[name] for name in rows["opt"]]
    cast = _autocast_bytes(rows, optimizers)
    forward, backward = (
        way + np.where(cast_bytes > 0, device.elementwise(cast_bytes), 0.0)
        for way, cast_bytes in zip((forward, backward), cast, strict=True)
    )
    accum = rows["accum"].to_numpy(float)
    both = accum * (forward + backward) + (accum - 1) * accumulation(portion.scenario, device, parameters)
    optimizer_bytes = np.array([optimizer.hbm_bytes for optimizer in optimizers])
    step = np.where(optimizer_bytes > 0, device.update(parameters, optimizer_bytes), 0.0)
    peaks = price(portion.scenario, portion.layouts)
    allocated = peaks.peak_memory_bytes - peaks.memory_buffers_bytes
    added = (accum - 1) * accumulation_bytes(portion.scenario, parameters) + accum * sum(cast) + optimizer_bytes * parameters
    dynamic = accum * phase_times.joules + moved_energy(portion.scenario.hw, added)
    times = (forward, backward, np.where(optimizer_bytes > 0, step, np.nan), both, both + step)
    joules = gpu_energy(portion.scenario.hw, dynamic, both + step)
    return dict(zip(FIGURES, (*times, joules, allocated, peaks.peak_memory_bytes), strict=True))


def _autocast_bytes(rows: pd.DataFrame, optimizers: list[Optimizer]) -> tuple[FloatArray, FloatArray]:
    """HBM bytes that autocast moves more in each pass: weights cast forward, their gradients backward, and a stream of 32 bits."""
    casts: NDArray[np.bool_] = np.array([optimizer.casts for optimizer in optimizers])
    stream, weights = (rows["layers"] * rows["mb"] * rows["seq"] * rows["hidden"]).to_numpy(float), rows["params"].to_numpy(float)
    ahead, back = np.array([AUTOCAST_STREAM[mode] for mode in rows["mode"]]).T
    return casts * (weights * CAST + ahead * stream), casts * (weights * CAST_BACK + back * stream)


def step_errors(table: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Errors of predicted / measured − 1 by mode, precision and column: ``n``, ``mape``, ``median``, ``p90`` (absolute), ``bias``.

    ``fwd + bwd`` sums the two where both were measured, and takes ``fwdbwd_time_s`` elsewhere.
    """
    both = pd.DataFrame(index=table.index)
    for name in FIGURES:
        if name in table:
            both[name] = predicted[f"predicted.{name}"] / table[name].where(table[name] > 0) - 1
    whole = [frame[f"{prefix}fwd_time_s"] + frame[f"{prefix}bwd_time_s"] for frame, prefix in ((predicted, "predicted."), (table, ""))]
    together = whole[0] / whole[1] - 1
    both.insert(0, "fwd + bwd", together.fillna(both["fwdbwd_time_s"]) if "fwdbwd_time_s" in both else together)
    return errors_by(both, table["mode"] + np.where(table["fp8"].astype(bool), " fp8", " bf16"))


def errors_by(errors: pd.DataFrame, kind: pd.Series[str]) -> pd.DataFrame:
    """Of errors, a column a figure, by kind of row and of all: ``n``, ``mape``, ``median``, ``p90`` (absolute), ``bias``."""
    lines = errors.assign(kind=kind).melt("kind", var_name="column", value_name="error").dropna()
    every = pd.concat([lines.assign(kind="all"), lines])
    return error_figures(every, ["kind", "column"])
