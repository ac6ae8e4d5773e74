"""The enumeration of layouts against a plain enumeration that is written from the rules' text."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from itertools import product
from typing import Any

import numpy as np
import pytest
from generated import scenario
from hypothesis import given
from hypothesis import strategies as st

from rapid_dse.config.run import RECOMPUTE, SCHEDULES
from rapid_dse.layouts import WHOLE_GROUP, Layouts, Space, broken_rules, enumerate_layouts, grid, resolved

Row = tuple[Any, ...]
NAMES = tuple(f.name for f in fields(Layouts))
DIVISIBILITY = "dp · micro_batch_size must divide global_batch_size"


def small_model(layers: int, heads: int, kv_heads: int, intermediate: int, experts: int = 0) -> Any:
    """A model of the sizes that the rules look at."""
    return scenario(
        model__num_hidden_layers=layers,
        model__num_attention_heads=heads,
        model__num_key_value_heads=kv_heads,
        model__hidden_size=heads * 8,
        model__head_dim=8,
        model__intermediate_size=intermediate,
        model__num_experts=experts,
        model__num_experts_per_tok=min(1, experts),
        model__moe_intermediate_size=64 * min(1, experts),
    ).model


def plain_legal(model: Any, seq_len: int, gpus: int, batch: int) -> set[Row]:
    """Every legal layout, one at a time, from the design's paragraph on what is legal."""
    found = set()
    experts = model.num_experts or 1
    degrees = range(1, gpus + 1)
    for tp, cp, pp in product([d for d in degrees if d <= 16], [d for d in degrees if d <= 16], degrees):
        if gpus % (tp * cp * pp):
            continue
        dp = gpus // (tp * cp * pp)
        for ep, vpp, mb, schedule in product(range(1, experts + 1), range(1, 9), (1, 2, 4, 8, 16), SCHEDULES[1:]):
            if pp == 1 and (schedule != "gpipe" or vpp > 1):  # schedules change nothing there
                continue
            shown = "none" if pp == 1 else schedule
            if not legal(model, seq_len, batch, tp, cp, dp, pp, ep, vpp, mb, shown):
                continue
            for zero, sp, recompute in product(range(4), (False, True), RECOMPUTE):
                if (dp == 1 and zero) or (tp == 1 and sp):
                    continue
                codes = (RECOMPUTE.index(recompute), SCHEDULES.index(shown))
                found.add((gpus, batch, tp, cp, dp, pp, ep, vpp, zero, sp, mb, *codes, WHOLE_GROUP))
    return found


def legal(model: Any, seq_len: int, batch: int, tp: int, cp: int, dp: int, pp: int, ep: int, vpp: int, mb: int, schedule: str) -> bool:
    """The paragraph, sentence by sentence."""
    kv_heads = model.num_key_value_heads
    if model.num_attention_heads % tp or model.intermediate_size % tp or (kv_heads % tp and tp % kv_heads):
        return False
    if cp > 1 and seq_len % (2 * cp):
        return False
    if pp * vpp > model.num_hidden_layers or batch % (dp * mb):
        return False
    micro_batches = batch // (dp * mb)
    if pp > 1 and (vpp > 1) != (schedule == "interleaved_1f1b"):
        return False
    if schedule == "interleaved_1f1b" and micro_batches % pp:
        return False
    if schedule == "zero_bubble" and micro_batches < pp:
        return False
    return (dp * cp) % ep == 0 and (model.num_experts or 1) % ep == 0


def rows_of(layouts: Layouts) -> list[Row]:
    return list(zip(*(getattr(layouts, name).tolist() for name in NAMES), strict=True))


def everything(gpus: int, batch: int) -> Space:
    return Space(dict.fromkeys(NAMES) | {"num_gpus": [gpus], "global_batch_size": [batch]})


@given(
    layers=st.integers(1, 9),
    heads=st.sampled_from([(4, 2), (6, 3), (8, 1), (8, 8), (12, 4)]),
    intermediate=st.sampled_from([24, 32, 48]),
    experts=st.sampled_from([0, 0, 4]),
    seq_len=st.sampled_from([8, 12, 30]),
    gpus=st.sampled_from([1, 2, 4, 6, 8, 12]),
    batch=st.sampled_from([1, 4, 6, 12, 24]),
)
def test_enumeration_equals_a_plain_one(
    layers: int, heads: tuple[int, int], intermediate: int, experts: int, seq_len: int, gpus: int, batch: int
) -> None:
    model = small_model(layers, *heads, intermediate, experts)
    found = rows_of(enumerate_layouts(everything(gpus, batch), model, seq_len)[0])
    assert len(found) == len(set(found)), "no layout twice"
    assert set(found) == plain_legal(model, seq_len, gpus, batch)


@given(gpus=st.sampled_from([4, 8, 12]), batch=st.sampled_from([4, 6, 24]), layers=st.integers(2, 8))
def test_every_combination_of_a_closed_space_is_legal_or_counted(gpus: int, batch: int, layers: int) -> None:
    model = small_model(layers, 12, 4, 48)
    values = {"num_gpus": [gpus], "global_batch_size": [batch], "tp": [2, 3, 8], "cp": [1, 2], "dp": [2, 4], "pp": [2, 4], "ep": [1]}
    values |= {"vpp": [1, 2], "zero": [0, 1], "sequence_parallel": [1], "micro_batch_size": [1, 2], "recompute": [0, 2], "schedule": [2, 3]}
    found, rejected = enumerate_layouts(Space(values), model, 16)
    combinations = int(np.prod([len(options) for options in values.values()]))
    assert len(found) + sum(rejected.values()) == combinations


def test_each_rejection_names_the_first_rule_that_breaks() -> None:
    model = small_model(8, 12, 4, 48)
    layouts = grid({**{name: [1] for name in NAMES}, "num_gpus": [6], "global_batch_size": [7], "dp": [6], "schedule": [0]})
    rule, texts = broken_rules(layouts, model, 16)
    assert [texts[index] for index in rule] == [DIVISIBILITY]
    counted = enumerate_layouts(everything(6, 7), model, 16)[1]
    assert counted[DIVISIBILITY] > 0
    assert isinstance(counted, Counter)


@pytest.mark.parametrize(("tp", "expected"), [(1, 8), (2, 4), (3, 0), (8, 1)])
def test_dp_auto_is_what_the_other_degrees_leave(tp: int, expected: int) -> None:
    columns = {**{name: [1] for name in NAMES}, "num_gpus": [8], "tp": [tp], "dp": [0]}
    layouts = grid(columns)
    assert layouts.dp.tolist() == [expected]
    assert resolved(layouts).dp.tolist() == [expected]


def test_chunks_hold_every_row_once_and_in_order() -> None:
    layouts = enumerate_layouts(everything(12, 24), small_model(8, 12, 4, 48), 16)[0]
    assert rows_of(Layouts.concatenate(list(layouts.chunks(7)))) == rows_of(layouts)
