"""What context parallelism must hold: how a sequence, the documents packed into it and the heads are divided among its ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.expert_rules import Broken

if TYPE_CHECKING:
    from rapid_dse.parallel.layouts import Layouts


def context_rules(layouts: Layouts, scenario: Scenario) -> list[Broken]:
    """Around a ring each rank has two parts of the sequence, an early and a late one; where heads are traded for parts of the sequence,
    each has a part of it, and heads and keys of its own."""
    work, model, cp = scenario.workload, scenario.model, layouts.cp
    said = model.sample_tokens is None  # the model's own length is filled up (``padded``)
    if scenario.parallel.cp_kind == "ring":
        return [
            ("seq_len must divide by 2 · cp", said & (cp > 1) & (work.seq_len % (2 * cp) != 0)),
            ("packing must leave documents of 2 · cp tokens or more", work.document_len < np.where(cp > 1, 2 * cp, 1)),
        ]
    keys = model.num_attention_heads if model.kv_lora_rank else model.num_key_value_heads
    return [
        ("seq_len must divide by cp", said & (work.seq_len % cp != 0)),
        ("packing must leave documents of a token or more", np.full(len(cp), work.document_len < 1)),
        ("tp · cp must divide num_attention_heads under cp_kind=ulysses", (cp > 1) & (model.num_attention_heads % (layouts.tp * cp) != 0)),
        ("tp · cp must divide num_key_value_heads under cp_kind=ulysses", (cp > 1) & (keys % (layouts.tp * cp) != 0)),
    ]
