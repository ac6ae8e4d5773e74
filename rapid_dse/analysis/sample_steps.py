"""Whole steps of vision transformers and of LSTMs on one GPU, phase by phase, predicted against measured.

A table has a step a row: ``kind`` (vit, lstm), ``phase`` (train, inference), ``batch``; of a vision transformer ``model`` (timm's name) and
``mode`` (eager, compile), whose 32-bit weights run under autocast and are stepped by a fused AdamW; of an LSTM (torch.nn.LSTM, on cuDNN, in
``dtype``) ``hidden, layers, seq``, with no optimizer. Measured are ``fwd_time_s, bwd_time_s, opt_time_s, time_s`` (s), ``energy_j`` (J of a
batch) and the peaks of memory.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from rapid_dse.analysis.predicted_columns import predicted_columns
from rapid_dse.analysis.steps import AUTOCAST_STREAM, CAST, CAST_BACK, OPTIMIZERS, SOFTWARE, errors_by
from rapid_dse.config.scenario import Scenario
from rapid_dse.cost.energy import gpu_energy, moved_energy
from rapid_dse.device import FloatArray, operator_model
from rapid_dse.events.backends import price
from rapid_dse.model.parameters import count
from rapid_dse.simulate.one_gpu import Casts, phases
from rapid_dse.sweep.cases import CaseGroup

NEEDED = ("hw", "kind", "phase", "batch", "model", "mode", "hidden", "layers", "seq", "dtype")
MODELS = {"vit_base_patch16_224": "vit_base", "vit_large_patch16_224": "vit_large", "vit_huge_patch14_224": "vit_huge"}
KINDS, PHASES, TYPES = ("vit", "lstm"), ("train", "inference"), ("bf16", "fp16", "fp32", "tf32")
FIGURES = ("fwd_time_s", "bwd_time_s", "opt_time_s", "time_s", "energy_j", "peak_allocated_bytes", "peak_reserved_bytes")
# Operations that autocast adds to a layer's forward pass: what two norms give is cast, and four weights with their biases; backward also
# the gradient of each half of the layer. Around the layers images are cast, what is classified, and two weights with their biases.
CASTS, OF_GRADIENTS, AROUND = 10.0, 2.0, 6.0
AUTOCAST = OPTIMIZERS["amp"]


def is_sample_steps(table: pd.DataFrame) -> bool:
    """Whether the table is one of such steps."""
    return set(NEEDED) <= set(table.columns) and bool(table["kind"].isin(KINDS).any())


def unpriced_samples(table: pd.DataFrame) -> pd.Series[str]:
    """Why each row is not predicted; empty where it is."""
    reasons = pd.Series("", index=table.index)
    vision = table["kind"].eq("vit")
    for column, known, where in (
        ("model", MODELS, vision),
        ("mode", SOFTWARE, vision),
        ("dtype", TYPES, ~vision),
        ("phase", PHASES, vision | ~vision),
        ("kind", KINDS, vision | ~vision),
    ):
        reasons[where & ~table[column].isin(list(known))] = f"{column} is none of {', '.join(known)}"
    reasons[~vision & table[["hidden", "layers", "seq"]].isna().any(axis=1)] = "a width is missing"
    return reasons


def predict_samples(table: pd.DataFrame) -> pd.DataFrame:
    """``predicted.<column>`` for each of ``FIGURES`` that the table has and measured, NaN where a row is not predicted.

    Raises:
        ValueError: a chip that conf/hw lacks, or a value that is none of its key's.
    """
    return predicted_columns(table, unpriced_samples(table), _as_cases, _predict, FIGURES)


def _as_cases(rows: pd.DataFrame) -> pd.DataFrame:
    """Each row as the override keys of a run on one GPU."""
    vision, trains = rows["kind"].eq("vit"), rows["phase"].eq("train")
    states = np.where(vision & trains, AUTOCAST.state_bytes, 0.0)
    columns = {
        "hw": rows["hw"],
        "model": rows["model"].map(MODELS).where(vision, "lstm"),
        "model.hidden_size": rows["hidden"].where(~vision),
        "model.num_hidden_layers": rows["layers"].where(~vision),
        "workload.seq_len": rows["seq"].where(~vision),
        "workload.global_batch_size": rows["batch"],
        "workload.precision": rows["dtype"].where(~vision, "bf16"),
        "parallel.micro_batch_size": rows["batch"],
        "parallel.recompute": "none",
        "parallel.zero": 0,
        "hw.num_gpus": 1,
        "software": rows["mode"].map(SOFTWARE).where(vision, "pytorch"),
        "software.optimizer_bytes": states,
        "phase": rows["phase"],
    }
    return pd.DataFrame(columns, index=rows.index).reset_index(drop=True)


def _predict(group: CaseGroup, rows: pd.DataFrame) -> dict[str, FloatArray]:
    """Seconds, joules and bytes of a group's rows, by column."""
    portion, trains = group.portion, rows["phase"].eq("train").to_numpy()
    if (portion.rule >= 0).any():
        raise ValueError(portion.reasons[int(portion.rule[portion.rule >= 0][0])])
    scenario, every = portion.scenario, np.ones(len(rows), bool)
    vision, device = scenario.model.kind == "vit", operator_model(scenario.hw)
    cast_bytes = _cast_bytes(scenario, rows) if vision else (np.zeros(len(rows)),) * 2
    started = CASTS * scenario.model.num_hidden_layers * scenario.hw.kernel_latency * scenario.software.kernels.eager
    ahead, back = (started + device.elementwise(cast) for cast in cast_bytes)
    casts = Casts(CASTS, OF_GRADIENTS, AROUND, ahead, back) if vision else None
    phase_times, alone = (phases(scenario, portion.layouts, every, casts, recorded=recorded) for recorded in (True, False))
    forward, backward = np.where(trains, phase_times.forward, alone.forward), np.where(trains, phase_times.backward, 0.0)
    stepped = vision * trains * AUTOCAST.hbm_bytes * count(scenario.model).total
    step = np.where(stepped > 0, device.elementwise(stepped), 0.0)
    whole = forward + backward + step
    dynamic = np.where(trains, phase_times.joules, phase_times.forward_joules) + moved_energy(
        scenario.hw, cast_bytes[0] + trains * cast_bytes[1] + stepped
    )
    peaks = price(scenario, portion.layouts)
    allocated = peaks.peak_memory_bytes - peaks.memory_buffers_bytes
    reserved = np.where(trains, peaks.peak_memory_bytes, np.nan)
    joules = gpu_energy(scenario.hw, dynamic, whole)
    return dict(zip(FIGURES, (forward, backward, step, whole, joules, np.where(trains, allocated, np.nan), reserved), strict=True))


def _cast_bytes(scenario: Scenario, rows: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Bytes at streaming speed that autocast moves more of a vision transformer, forward and backward."""
    parameters, layers = count(scenario.model).total, scenario.model.num_hidden_layers
    stream = rows["batch"].to_numpy(float) * (scenario.workload.seq_len * scenario.model.hidden_size * layers)
    ahead, back = np.array([AUTOCAST_STREAM[mode] for mode in rows["mode"]]).T
    return parameters * CAST + ahead * stream, parameters * CAST_BACK + back * stream


def sample_errors(table: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Errors of predicted / measured − 1 by kind, phase and column: as of ``errors_by``."""
    both = pd.DataFrame(index=table.index)
    for name in (figure for figure in FIGURES if figure in table):
        both[name] = predicted[f"predicted.{name}"] / table[name].where(table[name] > 0) - 1
    return errors_by(both, table["kind"] + " " + table["phase"])
