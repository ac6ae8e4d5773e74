"""Laws of layouts: the columns' enumeration against one in plain Python, written from the design's text on what is legal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapid_dse.config import Model
from rapid_dse.config.run import RECOMPUTE, SCHEDULES
from rapid_dse.layouts import KEYS, Layouts, Space, broken_rules, enumerate_layouts, grid, resolved

ALL = ("tp", "cp", "pp", "ep", "vpp", "zero", "sequence_parallel", "micro_batch_size", "recompute", "schedule")


class Trial(NamedTuple):
    """One layout in plain Python; the fields stand in the order of the columns."""

    num_gpus: int
    global_batch_size: int
    tp: int
    cp: int
    dp: int
    pp: int
    ep: int
    vpp: int
    zero: int
    sequence_parallel: bool
    micro_batch_size: int
    recompute: str
    schedule: str


def model_of(heads: int = 8, kv_heads: int = 4, layers: int = 6, intermediate: int = 48, experts: int = 0) -> Model:
    return Model(
        name="small",
        hidden_size=heads * 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=1000,
        num_experts=experts,
        num_experts_per_tok=1 if experts else 0,
        moe_intermediate_size=intermediate if experts else 0,
    )


models = st.builds(
    lambda kv, group, layers, intermediate, experts: model_of(kv * group, kv, layers, intermediate, experts),
    kv=st.sampled_from([1, 2, 3, 4, 8]),
    group=st.sampled_from([1, 2, 3, 4]),
    layers=st.integers(1, 9),
    intermediate=st.sampled_from([12, 16, 48, 50]),
    experts=st.sampled_from([0, 0, 2, 6]),
)


def is_legal(trial: Trial, model: Model, seq_len: int) -> bool:
    """The design's section "What is legal", a sentence a line."""
    if trial.dp == 0 or trial.tp * trial.cp * trial.pp * trial.dp != trial.num_gpus:
        return False
    if model.num_attention_heads % trial.tp or model.intermediate_size % trial.tp:
        return False
    kv_heads = model.num_key_value_heads
    if kv_heads % trial.tp and trial.tp % kv_heads:
        return False
    if trial.cp > 1 and seq_len % (2 * trial.cp):
        return False
    if trial.pp * trial.vpp > model.num_hidden_layers:
        return False
    if trial.global_batch_size % (trial.dp * trial.micro_batch_size):
        return False
    micro_batches = trial.global_batch_size // (trial.dp * trial.micro_batch_size)
    if trial.pp > 1:
        if (trial.vpp > 1) != (trial.schedule == "interleaved_1f1b"):
            return False
        if trial.schedule == "interleaved_1f1b" and micro_batches % trial.pp:
            return False
        if trial.schedule == "zero_bubble" and micro_batches < trial.pp:
            return False
    elif trial.vpp > 1:
        return False
    return (trial.dp * trial.cp) % trial.ep == 0 and (model.num_experts or 1) % trial.ep == 0


def plain(trial: Trial) -> Trial:
    """The same trial with what changes nothing at its simplest."""
    return trial._replace(
        zero=trial.zero if trial.dp > 1 else 0,
        sequence_parallel=trial.sequence_parallel and trial.tp > 1,
        schedule=trial.schedule if trial.pp > 1 else "none",
    )


def every_trial(num_gpus: int, batch: int, model: Model) -> Iterator[Trial]:
    """Each combination that the design lets an enumeration try, legal or not."""
    divisors = [d for d in range(1, num_gpus + 1) if num_gpus % d == 0]
    within = [d for d in divisors if d <= 16]
    experts = range(1, (model.num_experts or 1) + 1)
    for tp, cp, pp, ep, vpp, mbs in product(within, within, divisors, experts, range(1, 9), (1, 2, 4, 8, 16)):
        dp = num_gpus // (tp * cp * pp) if num_gpus % (tp * cp * pp) == 0 else 0
        for zero, sequence, recompute, schedule in product(range(4), (False, True), RECOMPUTE, SCHEDULES[1:]):
            yield Trial(num_gpus, batch, tp, cp, dp, pp, ep, vpp, zero, sequence, mbs, recompute, schedule)


def trials_of(layouts: Layouts) -> list[Trial]:
    """The columns' rows, with names for codes."""
    columns = {f.name: getattr(layouts, f.name).tolist() for f in fields(layouts)}
    columns["recompute"] = [RECOMPUTE[code] for code in columns["recompute"]]
    columns["schedule"] = [SCHEDULES[code] for code in columns["schedule"]]
    return [Trial(*row) for row in zip(*columns.values(), strict=True)]


def space(num_gpus: int, batch: int, **given_values: list[int]) -> Space:
    """Every value of every column but those given."""
    return Space({"num_gpus": [num_gpus], "global_batch_size": [batch]} | dict.fromkeys(ALL) | given_values)


@settings(max_examples=15, deadline=None)
@given(model=models, num_gpus=st.integers(1, 16), batch=st.integers(1, 24), seq_len=st.sampled_from([7, 8, 12, 32]))
def test_enumeration_equals_brute_force(model: Model, num_gpus: int, batch: int, seq_len: int) -> None:
    layouts, _ = enumerate_layouts(space(num_gpus, batch), model, seq_len)
    found = trials_of(layouts)
    expected = {plain(trial) for trial in every_trial(num_gpus, batch, model) if is_legal(trial, model, seq_len)}
    assert len(found) == len(set(found)), "a layout is enumerated twice"
    assert set(found) == expected


@settings(max_examples=60, deadline=None)
@given(model=models, num_gpus=st.integers(1, 48), batch=st.integers(1, 64), seq_len=st.sampled_from([7, 8, 12, 32]))
def test_what_is_enumerated_breaks_no_rule_and_the_rest_is_counted(model: Model, num_gpus: int, batch: int, seq_len: int) -> None:
    layouts, rejected = enumerate_layouts(space(num_gpus, batch), model, seq_len)
    first, texts = broken_rules(layouts, model, seq_len)
    assert (first == -1).all()
    assert all(count > 0 for count in rejected.values())
    assert set(rejected) <= set(texts)
    divisors = [d for d in range(1, num_gpus + 1) if num_gpus % d == 0]
    degrees = sum(d <= 16 for d in divisors) ** 2 * sum(d <= model.num_hidden_layers for d in divisors) * (model.num_experts or 1)
    tried = degrees * 8 * 5 * (4 * 2 * 3 * 4)  # vpp, micro_batch_size, and the values of zero, sequence_parallel, recompute, schedule
    assert len(layouts) + sum(rejected.values()) <= tried


@settings(max_examples=40, deadline=None)
@given(data=st.data(), model=models, num_gpus=st.integers(1, 48), batch=st.integers(1, 64))
def test_explicit_values_count_every_combination_that_changes_something(
    data: st.DataObject, model: Model, num_gpus: int, batch: int
) -> None:
    degrees = st.lists(st.integers(1, 8), min_size=1, max_size=3, unique=True)
    tp, cp, pp = data.draw(degrees), data.draw(degrees), data.draw(degrees.filter(lambda found: 1 not in found))
    values = {"tp": tp, "cp": cp, "pp": pp, "ep": [1], "vpp": [1], "micro_batch_size": [1], "zero": [1], "recompute": [1]}
    layouts, rejected = enumerate_layouts(space(num_gpus, batch, **values, sequence_parallel=[0], schedule=[2]), model, 64)
    assert len(layouts) + sum(rejected.values()) == len(tp) * len(cp) * len(pp)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), model=models, seq_len=st.sampled_from([7, 8, 32]))
def test_rules_agree_with_the_text_on_any_layout(data: st.DataObject, model: Model, seq_len: int) -> None:
    degree = st.sampled_from([1, 2, 3, 4, 8])
    columns: dict[str, list[int]] = {}
    for name in KEYS:
        strategy = {"zero": st.integers(0, 3), "sequence_parallel": st.integers(0, 1), "recompute": st.integers(0, 2)}.get(name, degree)
        strategy = {"schedule": st.integers(1, 4), "num_gpus": st.integers(1, 64), "global_batch_size": st.integers(1, 64)}.get(
            name, strategy
        )
        columns[name] = data.draw(st.lists(strategy, min_size=20, max_size=20))
    columns["dp"] = [
        value if keep else 0
        for value, keep in zip(columns["dp"], data.draw(st.lists(st.booleans(), min_size=20, max_size=20)), strict=True)
    ]
    layouts = resolved(Layouts.of(columns))
    first, _ = broken_rules(layouts, model, seq_len)
    expected = [is_legal(trial, model, seq_len) for trial in trials_of(layouts)]
    assert ((first == -1) == np.array(expected)).all()


def test_counts_by_rule_are_those_of_single_layouts() -> None:
    values = {"tp": [1, 2, 3, 16], "cp": [1, 2], "pp": [2, 4, 8], "vpp": [1, 2], "micro_batch_size": [1, 2, 3]}
    fixed = {"ep": [1], "zero": [1], "sequence_parallel": [0], "recompute": [1], "schedule": [2, 3, 4]}
    model, seq_len = model_of(), 64
    _, rejected = enumerate_layouts(space(32, 48, **values, **fixed), model, seq_len)
    rows = grid({"num_gpus": [32], "global_batch_size": [48], "dp": [0]} | values | fixed)
    first, texts = broken_rules(rows, model, seq_len)
    assert rejected == Counter(texts[rule] for rule in first.tolist() if rule >= 0)


def test_auto_dp_takes_what_is_left() -> None:
    columns = {name: [1, 1, 1] for name in KEYS} | {"num_gpus": [64, 64, 64], "tp": [8, 8, 3], "pp": [2, 1, 1], "dp": [0, 4, 0]}
    assert resolved(Layouts.of(columns)).dp.tolist() == [4, 4, 0]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunks_are_the_layouts_in_order(size: int) -> None:
    layouts, _ = enumerate_layouts(space(8, 16), model_of(), 64)
    parts = list(layouts.chunks(size))
    assert max(len(part) for part in parts) <= size
    assert trials_of(Layouts.concatenate(parts)) == trials_of(layouts)
