"""Single layers as plain PyTorch serves them, for ``layers_alone``: experts of a pass, absorbed latent attention of a decode step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from rapid_dse.config.scenario import Scenario
from rapid_dse.device import FloatArray, OperatorModel, operator_model
from rapid_dse.model.architecture import LayerKind, architecture
from rapid_dse.model.shapes import ONE
from rapid_dse.parallel.engines import Degrees
from rapid_dse.simulate.inference.products import attention_products, expert_products
from rapid_dse.simulate.inference.served_kernels import decode_attention, price_products
from rapid_dse.simulate.operator_times import counted_seconds, elementwise_bytes
from rapid_dse.sweep.cases import group_cases

ALONE = Degrees(*(np.ones(1, np.int64),) * 6)
# Kernels of a decode step's latent attention beside products and scores: the stream's norm and those of two latents, rotation of queries
# and of the key, the cache's write, queries joined, heads put side by side.
GLUE = 8
ENGINE: dict[str, Any] = {
    "workload": "inference",
    "workload.precision": "bf16",
    "hw.num_gpus": 1,
    "software": "pytorch",
    "software.enforce": False,
}


def served_experts(rows: pd.DataFrame) -> dict[str, FloatArray]:
    """Seconds of a layer's router and experts over ``tokens``, of which each chooses its experts at random."""
    cases = pd.DataFrame({"hw": rows["hw"], "model": rows["name"]}, index=rows.index).reset_index(drop=True)
    out, tokens = np.empty(len(rows)), rows["tokens"].to_numpy(float)
    for group in group_cases(cases.assign(**ENGINE)):
        scenario = group.portion.scenario
        kind, device = architecture(scenario.model).kinds[-1], operator_model(scenario.hw)
        for row in group.rows:
            out[row] = _experts(scenario, kind, tokens[row : row + 1], device)
    return {"time_s": out}


def _experts(scenario: Scenario, kind: LayerKind, tokens: FloatArray, device: OperatorModel) -> float:
    alone = LayerKind("part", kind.parts[1:])
    shape = replace(ONE, micro_batch_size=tokens.astype(np.int64))
    products = price_products(scenario, expert_products(scenario.model, ALONE, tokens), device, decoding=True).seconds
    permuted_bytes = elementwise_bytes(scenario, alone, shape)[0] * scenario.software.kernels.elementwise_traffic
    return float((products + counted_seconds(scenario, alone, shape, device, 0) + device.elementwise(permuted_bytes))[0])


def served_latents(rows: pd.DataFrame) -> dict[str, FloatArray]:
    """Seconds of absorbed latent attention, ``batch`` sequences of ``context`` tokens: the layer, or what stands between its products."""
    cases = {
        "hw": rows["hw"],
        "model": "deepseek_v3",
        "model.hidden_size": rows["hidden"],
        "model.num_attention_heads": rows["heads"],
        "model.num_key_value_heads": rows["heads"],
        "model.q_lora_rank": rows["q_lora_rank"],
        "model.kv_lora_rank": rows["kv_lora_rank"],
        "software.attention": "unfused",
    }
    out = np.empty(len(rows))
    batch, context = rows["batch"].to_numpy(float), rows["context"].to_numpy(float)
    whole = rows["kind"].eq("mla_decode_layer").to_numpy()
    for group in group_cases(pd.DataFrame(cases, index=rows.index).assign(**ENGINE).reset_index(drop=True)):
        scenario = group.portion.scenario
        device = operator_model(scenario.hw)
        for row in group.rows:
            sequences = batch[row : row + 1]
            seconds = decode_attention(scenario, ALONE, sequences, context[row], 1.0, device).seconds
            if whole[row]:
                around = attention_products(scenario.model, ALONE, sequences, absorbed=True)
                seconds = seconds + price_products(scenario, around, device, decoding=True).seconds + GLUE * scenario.hw.kernel_latency
            out[row] = float(seconds[0])
    return {"time_s": out}
