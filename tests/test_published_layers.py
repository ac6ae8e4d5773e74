"""Layers of Megatron-LM as published, each alone: where small kernels and transfers show, and nothing of a pipeline or of a step's end."""

from __future__ import annotations

import numpy as np
from trials import layouts, scenario

from rapid_dse.simulate.arrangement import arrangement
from rapid_dse.simulate.layer import layer_time
from rapid_dse.simulate.layer_work import framework_block
from rapid_dse.simulate.shard_copies import with_copies
from rapid_dse.simulate.training import prepare

# Korthikanti et al. (arXiv 2205.05198), table 4: ms of a layer of the 22B model, forward and backward with what is recomputed, on 8 A100 at
# micro-batch 4; by sequence parallelism and recomputation.
TABLE_4 = {
    (False, "none"): (7.7, 11.9),
    (True, "none"): (7.2, 11.8),
    (False, "selective"): (7.7, 13.2),
    (True, "selective"): (7.2, 13.1),
    (False, "full"): (7.7, 19.5),
}


def test_a_layer_of_22b_takes_what_was_published() -> None:
    of = scenario(
        hw="a100",
        model="gpt3_175b",
        cluster__gpu_spread=0.015,
        model__hidden_size=6144,
        model__num_hidden_layers=48,
        model__num_attention_heads=64,
        model__num_key_value_heads=64,
        model__intermediate_size=24576,
        model__vocab_size=51200,
        workload__precision="fp16",
        workload__seq_len=2048,
        software__attention="unfused",
    )
    row = {"num_gpus": 8, "tp": 8, "zero": 0, "micro_batch_size": 4, "global_batch_size": 4}
    rows = layouts(*(row | {"sequence_parallel": split, "recompute": mode} for split, mode in TABLE_4))
    ready = prepare(of, rows)
    block = with_copies(of, rows, framework_block(of, ready.shape, ready.alone, ready.device).take(ready.where), ready.device)
    (layer,) = layer_time(of, rows, block, arrangement(of, rows)).of_kinds
    errors = 1e3 * np.stack([layer.forward, layer.backward], axis=1) / np.array(list(TABLE_4.values())) - 1
    assert np.abs(errors).mean() < 0.05, errors
    assert np.abs(errors).max() < 0.09, errors
