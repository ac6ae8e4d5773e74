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

from rapid_dse.config import Scenario
from rapid_dse.config.run import RECOMPUTE, Parallel
from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.parallel import enumeration
from rapid_dse.parallel.enumeration import Space, enumerate_layouts, grid
from rapid_dse.parallel.layouts import WHOLE_GROUP, Layouts, broken_rules, resolved

Row = tuple[Any, ...]
NAMES = tuple(f.name for f in fields(Layouts))
DIVISIBILITY = "dp · micro_batch_size must divide global_batch_size"


def small(
    layers: int, heads: int, kv_heads: int, intermediate: int, experts: int = 0, seq_len: int = 16, split: str = "megatron"
) -> Scenario:
    """A scenario of the sizes that the rules look at; an expert's width is half the dense one, which mixtures of experts do not have."""
    return scenario(
        workload__seq_len=seq_len,
        software__pipeline_split=split,
        model__num_hidden_layers=layers,
        model__num_attention_heads=heads,
        model__num_key_value_heads=kv_heads,
        model__hidden_size=heads * 8,
        model__head_dim=8,
        model__intermediate_size=intermediate,
        model__num_experts=experts,
        model__num_experts_per_tok=min(1, experts),
        model__moe_intermediate_size=intermediate // 2 * min(1, experts),
    )


def plain_legal(of: Scenario, gpus: int, batch: int) -> set[Row]:
    """Every legal layout, one at a time, from the design's paragraph on what is legal."""
    found, model, seq_len = set(), of.model, of.workload.seq_len
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
            if not legal(of, batch, tp, cp, dp, pp, ep, vpp, mb, shown):
                continue
            sharing = [n for n in degrees if n <= 16 and gpus % n == 0] if model.num_experts else [0]
            for zero, sp, recompute, etp in product(range(4), (False, True), RECOMPUTE, sharing):
                if (dp * cp == 1 and zero) or (tp == 1 and sp) or (sp and seq_len // cp % tp):
                    continue
                null = tp if tp * cp * dp % (tp * ep) == 0 else 1
                if model.num_experts and (
                    tp * cp * dp % (etp * ep) or model.moe_intermediate_size % etp or (tp > 1 and etp != tp and not sp)
                ):
                    continue
                codes = (RECOMPUTE.index(recompute), SCHEDULES.index(shown))
                found.add((gpus, batch, tp, cp, dp, pp, ep, vpp, zero, sp, mb, *codes, WHOLE_GROUP, 0 if etp == null else etp))
    return found


def legal(of: Scenario, batch: int, tp: int, cp: int, dp: int, pp: int, ep: int, vpp: int, mb: int, schedule: str) -> bool:
    """The paragraph, sentence by sentence; enumeration keeps to the bound on pp where a framework leaves stages empty, too."""
    model = of.model
    kv_heads, width = model.num_key_value_heads, 0 if model.num_experts else model.intermediate_size
    if model.num_attention_heads % tp or width % tp or (kv_heads % tp and tp % kv_heads):
        return False
    if cp > 1 and of.workload.seq_len % (2 * cp):
        return False
    most = model.num_hidden_layers + (2 if of.software.pipeline.pipeline_split == "megatron" else 0)
    chunks = 2 if schedule in ("zb_v", "dualpipe_v") else vpp
    if pp * chunks > most or batch % (dp * mb):
        return False
    micro_batches = batch // (dp * mb)
    if pp > 1 and (vpp > 1) != (schedule == "interleaved_1f1b"):
        return False
    if schedule == "interleaved_1f1b" and micro_batches % pp:
        return False
    if schedule == "dualpipe_v" and micro_batches < 2 * pp:
        return False
    if schedule == "zero_bubble" and micro_batches < pp:
        return False
    return (model.num_experts or 1) % ep == 0


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
    split=st.sampled_from(["megatron", "balanced", "even"]),
    gpus=st.sampled_from([1, 2, 4, 6, 8, 12]),
    batch=st.sampled_from([1, 4, 6, 12, 24]),
)
def test_enumeration_equals_a_plain_one(
    layers: int, heads: tuple[int, int], intermediate: int, experts: int, seq_len: int, split: str, gpus: int, batch: int
) -> None:
    of = small(layers, *heads, intermediate, experts, seq_len, split)
    found = rows_of(enumerate_layouts(everything(gpus, batch), of)[0])
    assert len(found) == len(set(found)), "no layout twice"
    assert set(found) == plain_legal(of, gpus, batch)


@given(gpus=st.sampled_from([4, 8, 12]), batch=st.sampled_from([4, 6, 24]), layers=st.integers(2, 8))
def test_every_combination_of_a_closed_space_is_legal_or_counted(gpus: int, batch: int, layers: int) -> None:
    of = small(layers, 12, 4, 48)
    values = {"num_gpus": [gpus], "global_batch_size": [batch], "tp": [2, 3, 8], "cp": [1, 2], "dp": [2, 4], "pp": [2, 4], "ep": [1]}
    values |= {"vpp": [1, 2], "zero": [0, 1], "sequence_parallel": [1], "micro_batch_size": [1, 2], "recompute": [0, 2], "schedule": [2, 3]}
    found, rejected = enumerate_layouts(Space(values), of)
    combinations = int(np.prod([len(options) for options in values.values()]))
    assert len(found) + sum(rejected.values()) == combinations


def test_blocks_of_any_size_give_the_same_rows_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    of = small(6, 12, 4, 48, experts=2)
    rows, counts = [], []
    for size in (10**9, 500):
        monkeypatch.setattr(enumeration, "BLOCK_ROWS", size)
        found, rejected = enumerate_layouts(everything(6, 12), of)
        rows.append(rows_of(found))
        counts.append(rejected)
    assert rows[1:] == rows[:1]
    assert counts[1:] == counts[:1]


def test_each_rejection_names_the_first_rule_that_breaks() -> None:
    of = small(8, 12, 4, 48)
    layouts = grid({**{name: [1] for name in NAMES}, "num_gpus": [6], "global_batch_size": [7], "dp": [6], "schedule": [0]})
    rule, texts = broken_rules(layouts, of)
    assert [texts[index] for index in rule] == [DIVISIBILITY]
    counted = enumerate_layouts(everything(6, 7), of)[1]
    assert counted[DIVISIBILITY] > 0
    assert isinstance(counted, Counter)


@pytest.mark.parametrize(("tp", "expected"), [(1, 8), (2, 4), (3, 0), (8, 1)])
def test_dp_auto_is_what_the_other_degrees_leave(tp: int, expected: int) -> None:
    columns = {**{name: [1] for name in NAMES}, "num_gpus": [8], "tp": [tp], "dp": [0]}
    layouts = grid(columns)
    assert layouts.dp.tolist() == [expected]
    assert resolved(layouts).dp.tolist() == [expected]


def reason(of: Scenario, **columns: int) -> str | None:
    """The rule that one layout breaks first, if it breaks any."""
    rule, texts = broken_rules(grid({name: [columns.get(name, int(name != "etp"))] for name in NAMES} | {"dp": [0]}), of)
    return None if rule[0] < 0 else texts[rule[0]]


def test_embedding_and_loss_are_layers_where_the_framework_counts_them() -> None:
    """405B's recipes: 126 layers over pp 16 x vpp 8 are 126 + 2 slots; one chunk more has nothing to hold, nor has it where only layers
    count. A framework that balances by cost leaves stages empty: 16 layers over 32 stages run there."""
    deep = {"num_gpus": 16 * 17, "global_batch_size": 17 * 16, "schedule": SCHEDULES.index("interleaved_1f1b"), "vpp": 8}
    counted, plain = (small(126, 8, 8, 32, split=split) for split in ("megatron", "even"))
    assert reason(counted, pp=16, **deep) is None
    assert reason(counted, pp=17, **deep) == "pp · vpp must not exceed num_hidden_layers + 2 (embedding and loss count as layers)"
    assert reason(plain, pp=16, **deep) == "pp · vpp must not exceed num_hidden_layers"
    shallow = {"num_gpus": 32, "pp": 32, "global_batch_size": 32, "schedule": SCHEDULES.index("1f1b")}
    assert reason(small(16, 8, 8, 32, split="balanced"), **shallow) is None
    assert reason(small(16, 8, 8, 32), **shallow) is not None


def test_a_users_own_split_has_a_stage_for_each_and_all_layers() -> None:
    """44 layers; with vpp 3 each inner stage needs 3 layers, the first and the last, which hold embedding and head, 2."""
    one = {"num_gpus": 4, "pp": 4, "global_batch_size": 12}
    chunked = one | {"schedule": SCHEDULES.index("interleaved_1f1b"), "vpp": 3}
    plain = one | {"schedule": SCHEDULES.index("1f1b")}

    def told(split: list[int], **columns: int) -> str | None:
        of = small(44, 8, 8, 32)
        return reason(of.model_copy(update={"parallel": Parallel(stage_layers=split)}), **columns)

    empty = "parallel.stage_layers=22,0,0,22: each of a stage's vpp chunks needs a layer, the embedding or the head"
    assert told([10, 12, 12, 10], **plain) is told([2, 20, 20, 2], **chunked) is told([0, 22, 22, 0], **plain) is None
    assert told([10, 12, 12], **plain) == "parallel.stage_layers=10,12,12 must have an entry for each of pp stages"
    assert told([10, 12, 12, 9], **plain) == "parallel.stage_layers=10,12,12,9 adds up to 43; it must add up to num_hidden_layers=44"
    assert told([22, 0, 0, 22], **plain) == empty
    assert told([1, 21, 20, 2], **chunked) == empty.replace("22,0,0,22", "1,21,20,2")


@pytest.mark.parametrize(
    ("written", "meant"), [("10,12, 12,10", (10, 12, 12, 10)), ([10, 12.0], (10, 12)), (32, (32,)), (None, None), ("0,4", (0, 4))]
)
def test_a_split_is_a_list_or_its_text(written: Any, meant: tuple[int, ...] | None) -> None:
    assert Parallel(stage_layers=written).stage_layers == meant


@pytest.mark.parametrize("written", ["10,x", "", "10;12", [1.5, 2], [-1, 3], [True, 2], "-1,3", True])
def test_what_is_no_split_is_refused(written: Any) -> None:
    with pytest.raises(ValueError, match="stage_layers"):
        Parallel(stage_layers=written)


def test_sequence_parallelism_shares_each_ranks_part_of_the_sequence_evenly() -> None:
    """24 tokens over cp 2 are 12 a rank: tp 4 shares them, tp 8 does not, and may go without."""
    of, four, eight = small(8, 8, 8, 32, seq_len=24), {"num_gpus": 8, "tp": 4, "cp": 2}, {"num_gpus": 16, "tp": 8, "cp": 2}
    assert reason(of, sequence_parallel=1, **four) is None
    assert reason(of, sequence_parallel=1, **eight) == "under sequence parallelism seq_len / cp must divide by tp"
    assert reason(of, sequence_parallel=0, **eight) is None


def test_tp_divides_the_mlps_that_the_model_has() -> None:
    """Experts of width 24 / 2 = 12 go over 4 GPUs and not over 8, though a dense MLP of width 24 would; at tp 8 they may be shared by 4;
    the dense width of a mixture of experts is nobody's, that of shared experts is cut by tp."""
    mixture = {"model__num_experts": 4, "model__num_experts_per_tok": 1, "model__moe_intermediate_size": 32}
    unused = scenario(model__num_attention_heads=8, model__num_key_value_heads=8, model__intermediate_size=30, **mixture)
    assert reason(small(8, 8, 8, 24, experts=4), num_gpus=4, tp=4, sequence_parallel=1) is None
    assert reason(small(8, 8, 8, 24, experts=4), num_gpus=8, tp=8, sequence_parallel=1) == "etp must divide moe_intermediate_size"
    assert reason(small(8, 8, 8, 24, experts=4), num_gpus=8, tp=8, etp=4, sequence_parallel=1) is None
    shared = scenario(
        model__num_attention_heads=8,
        model__num_key_value_heads=8,
        **mixture | {"model__moe_intermediate_size": 28, "model__n_shared_experts": 1},
    )
    assert reason(shared, num_gpus=8, tp=8, etp=4, sequence_parallel=1) == "tp must divide n_shared_experts · moe_intermediate_size"
    assert reason(small(8, 8, 8, 24), num_gpus=8, tp=8, sequence_parallel=1) is None
    assert reason(unused, num_gpus=8, tp=8, sequence_parallel=1) is None
