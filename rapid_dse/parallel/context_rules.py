"""What context parallelism must hold: how a sequence, the documents packed into it and the heads are divided among its ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rapid_dse.config.model import Model
from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.expert_rules import Broken

if TYPE_CHECKING:
    from rapid_dse.parallel.layouts import IntColumn, Layouts


def context_rules(layouts: Layouts, scenario: Scenario) -> list[Broken]:
    """Around a ring each rank has two parts of the sequence, an early and a late one; where heads are traded for parts of the sequence,
    each has a part of it and heads of its own, and keys of its own or, where there are fewer of them than ranks, a copy."""
    work, model, cp = scenario.workload, scenario.model, layouts.cp
    said = model.sample_tokens is None  # the model's own length is filled up (``padded``)
    if scenario.cp_kind == "ring":
        return [
            ("seq_len must divide by 2 · cp", said & (cp > 1) & (work.seq_len % (2 * cp) != 0)),
            ("packing must leave documents of 2 · cp tokens or more", work.document_len < np.where(cp > 1, 2 * cp, 1)),
        ]
    keys, over = local_keys(scenario.model, layouts.tp), layouts.cp > 1
    uneven = (keys % cp != 0) & (cp % keys != 0)
    return [
        ("seq_len must divide by cp", said & (work.seq_len % cp != 0)),
        ("packing must leave documents of a token or more", np.full(len(cp), work.document_len < 1)),
        ("tp · cp must divide num_attention_heads under cp_kind=ulysses", (cp > 1) & (model.num_attention_heads % (layouts.tp * cp) != 0)),
        ("cp must divide a rank's key-value heads, or they must divide cp, under cp_kind=ulysses", over & uneven),
    ]


def local_keys(model: Model, tp: IntColumn) -> IntColumn:
    """Key-value heads of a tensor-parallel rank, all of them with latent attention's own keys; at least one, ``(n,)``."""
    heads = model.num_attention_heads if model.kv_lora_rank else model.num_key_value_heads
    own_heads: IntColumn = np.maximum(1, heads // tp)
    return own_heads
