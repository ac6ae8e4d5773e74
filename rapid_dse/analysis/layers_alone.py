"""Single layers and grouped products on one GPU, predicted against measured.

A table has a measurement a row, of a ``kind``:
  ``grouped_gemm``: ``num_groups`` products of ``rows`` rows together, weights (n, k), ``layout`` forward, dgrad or wgrad, ``routing``
  balanced (groups of equal size) or another; ``time_s``.
  ``moe_layer_train``, ``moe_layer_infer``: router and experts of the model ``name`` over ``tokens``; ``fwd_time_s, bwd_time_s, time_s``,
  ``energy_j`` (J, both passes), ``peak_allocated_bytes``.
  ``mla_train``: latent attention of ``seq`` tokens, ``mb`` sequences, with its widths, by ``attn`` (a key of ``KERNELS``).
  ``mla_decode_layer``: absorbed latent attention of a decode step, ``batch`` sequences of ``context`` tokens; ``mla_decode_attention``: its
  kernels alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rapid_dse.analysis.chips import chips
from rapid_dse.analysis.error_figures import error_figures
from rapid_dse.analysis.layers_served import served_experts, served_latents
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import Software
from rapid_dse.cost.energy import gpu_energy
from rapid_dse.device import FloatArray, GroupedCall, operator_model
from rapid_dse.model.architecture import LayerKind, architecture
from rapid_dse.model.layers.part import CoreAttention, ForwardStep, Part, PartParameters, SmallKernel, Tensor
from rapid_dse.model.shapes import MatMul, MicroBatch
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.one_gpu import part_memory, part_phases
from rapid_dse.sweep.cases import CaseGroup, group_cases

KERNELS = {"flash_padded": "flash2", "cudnn": "cudnn", "efficient": "efficient"}
LATENT = ("heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
COLUMNS = ("fwd_time_s", "bwd_time_s", "time_s", "energy_j", "peak_allocated_bytes")
PLAIN = {"workload.precision": "bf16", "parallel.recompute": "none", "parallel.zero": 0, "hw.num_gpus": 1, "software": "pytorch"}
OF_THE_STREAM = ("mlp_norm", "mlp_residual", "attention_norm", "attention_residual")  # a layer's norm and residual sum, a launch each


def is_layers(table: pd.DataFrame) -> bool:
    """Whether the table has rows of single layers or grouped products."""
    return "kind" in table and bool(table["kind"].isin(list(PREDICTED)).any())


def predict_layers(table: pd.DataFrame) -> pd.DataFrame:
    """``predicted.<column>`` for each of ``COLUMNS`` that the table has, NaN where a row is not predicted or was not measured.

    Raises:
        ValueError: a chip or a model that conf lacks, or a value that is none of its key's.
    """
    predicted = pd.DataFrame(np.nan, index=table.index, columns=list(COLUMNS))
    for kind, predict in PREDICTED.items():
        rows = table[table["kind"].eq(kind) & unpriced_layers(table).eq("")]
        if len(rows):
            for name, values in predict(rows).items():
                predicted.loc[rows.index, name] = values
    wanted = [name for name in COLUMNS if name in table]
    return pd.DataFrame({f"predicted.{name}": predicted[name].where(table[name].notna()) for name in wanted}, index=table.index)


def layer_errors(table: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Errors of predicted / measured − 1 by kind and column: ``n``, ``mape``, ``median``, ``p90`` (absolute), ``bias``."""
    errors = pd.DataFrame({name: predicted[f"predicted.{name}"] / table[name] - 1 for name in COLUMNS if name in table})
    lines = errors.assign(kind=table["kind"]).melt("kind", var_name="column", value_name="error").dropna()
    return error_figures(lines, ["kind", "column"])


def unpriced_layers(table: pd.DataFrame) -> pd.Series[str]:
    """Why each row is not predicted; empty where it is."""
    reasons = pd.Series("", index=table.index)
    reasons[~table["kind"].isin(list(PREDICTED))] = "no kind that is predicted here"
    if "attn" in table:
        reasons[table["kind"].eq("mla_train") & ~table["attn"].isin(list(KERNELS))] = "attention kernels that no chip here lists"
    return reasons


def _grouped(rows: pd.DataFrame) -> dict[str, FloatArray]:
    """Seconds of grouped products."""
    known, out = chips(set(rows["hw"])), np.empty(len(rows))
    weight, back = rows["layout"].eq("wgrad").to_numpy(), rows["layout"].eq("dgrad").to_numpy()
    count, wide, deep = (rows[name].to_numpy(float) for name in ("num_groups", "n", "k"))
    mean, even = rows["rows"].to_numpy(float) / count, rows["routing"].eq("balanced").to_numpy()
    shape = np.where(weight, wide, mean), np.where(weight | back, deep, wide), np.where(weight, mean, np.where(back, wide, deep)), count
    for hw, wgrad, equal in sorted(set(zip(rows["hw"].astype(str), weight.tolist(), even.tolist(), strict=True))):
        at = rows["hw"].eq(hw).to_numpy() & (weight == wgrad) & (even == equal)
        m, n, k, batch = (count[at] for count in shape)
        out[at] = operator_model(known[hw]).grouped(m, n, k, batch, GroupedCall("k" if wgrad else "m", even=equal))
    return {"time_s": out}


def _experts(rows: pd.DataFrame) -> dict[str, FloatArray]:
    """Seconds and bytes of a layer's router and experts, trained."""
    cases = {
        "hw": rows["hw"],
        "model": rows["name"],
        "workload.seq_len": rows["tokens"],
        "workload.global_batch_size": 1,
        "parallel.micro_batch_size": 1,
    }
    return _parts(pd.DataFrame(cases, index=rows.index), 1)


def _latent(rows: pd.DataFrame) -> dict[str, FloatArray]:
    """Seconds and bytes of latent attention, trained."""
    cases = {
        "hw": rows["hw"],
        "model": "deepseek_v3",
        "model.hidden_size": rows["hidden"],
        "model.num_attention_heads": rows["heads"],
        "model.num_key_value_heads": rows["heads"],
        **{f"model.{name}": rows[name] for name in LATENT[1:]},
        "workload.seq_len": rows["seq"],
        "workload.global_batch_size": rows["mb"],
        "parallel.micro_batch_size": rows["mb"],
        "software.flash_kernel": rows["attn"].map(KERNELS),
    }
    return _parts(pd.DataFrame(cases, index=rows.index), 0)


def _parts(cases: pd.DataFrame, number: int) -> dict[str, FloatArray]:
    """The passes of part ``number`` of the model's last layer under plain PyTorch, a case a row."""
    plain: dict[str, Any] = dict(PLAIN)
    parts = {name: np.empty(len(cases)) for name in COLUMNS}
    for group in group_cases(cases.assign(**plain).reset_index(drop=True)):
        scenario, layouts, kind = _alone(group, number)
        passes = part_phases(scenario, layouts, kind, len(OF_THE_STREAM) / 2)
        peak = part_memory(scenario, layouts, kind)
        both = passes.forward + passes.backward
        values = (passes.forward, passes.backward, both, gpu_energy(scenario.hw, passes.joules, both), peak)
        for name, value in zip(COLUMNS, values, strict=True):
            parts[name][group.rows] = value
    return parts


def _alone(group: CaseGroup, number: int) -> tuple[Scenario, Layouts, LayerKind]:
    """What a group of cases prices: the part without the norm ahead of it and the residual sum behind it."""
    portion = group.portion
    if (portion.rule >= 0).any():
        raise ValueError(portion.reasons[int(portion.rule[portion.rule >= 0][0])])
    part = architecture(portion.scenario.model).kinds[-1].parts[number]
    return portion.scenario, portion.layouts, LayerKind("part", (OffStream(part.model, part),))


@dataclass(frozen=True)
class OffStream(Part):
    """A part of a layer without what ties it to the stream between layers."""

    whole: Part

    def parameters(self, shape: MicroBatch) -> PartParameters:
        return self.whole.parameters(shape)

    def products(self, shape: MicroBatch) -> list[MatMul]:
        return self.whole.products(shape)

    def attention(self, shape: MicroBatch) -> CoreAttention | None:
        return self.whole.attention(shape)

    def small_kernels(self, shape: MicroBatch, software: Software) -> list[SmallKernel]:
        return [kernel for kernel in self.whole.small_kernels(shape, software) if kernel.name not in OF_THE_STREAM]

    def steps(self) -> tuple[ForwardStep, ...]:
        return self.whole.steps()

    def tensors(self, shape: MicroBatch, software: Software) -> list[Tensor]:
        return self.whole.tensors(shape, software)

    def copies(self) -> int:
        return self.whole.copies()


PREDICTED: dict[str, Callable[[pd.DataFrame], dict[str, FloatArray]]] = {
    "grouped_gemm": _grouped,
    "moe_layer_train": _experts,
    "mla_train": _latent,
    "moe_layer_infer": served_experts,
    "mla_decode_layer": served_latents,
    "mla_decode_attention": served_latents,
}
