"""All-to-all context parallelism: its volume by hand, what a rank computes and keeps, what it must hold, and who offers it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from layout_spread import BLOCKING
from trials import layouts, legal, priced, scenario

from rapid_dse.analysis.reasons.chosen import trial
from rapid_dse.analysis.reasons.neighbours import neighbours
from rapid_dse.config.scenario import Scenario
from rapid_dse.events.backends import price
from rapid_dse.parallel.layouts import broken_rules
from rapid_dse.simulate.arrangement import arrangement
from rapid_dse.simulate.layer_memory import layer_activations
from rapid_dse.simulate.training import prepare
from rapid_dse.simulate.trust import trust

SEQ = 8192
ROW = {"num_gpus": 4, "cp": 4, "global_batch_size": 1, "recompute": "none"}


def traded(model: str = "llama3_1_8b", software: str = "megatron_lm", **changes: Any) -> Scenario:
    return scenario("h100", model, software, parallel__cp_kind="ulysses", **changes)


def test_volume_is_that_of_the_paper() -> None:
    """DeepSpeed-Ulysses, section 3.2: 3·N·h/P bytes of queries, keys and values and N·h/P of outputs go through all-to-alls of P ranks,
    of which a rank keeps a P-th; Megatron's way of sequence parallelism takes 4·N·h whatever P. Llama 2 7B has as many keys as queries."""
    hidden, of = 4096, traded("llama2_7b")
    for ranks in (2, 4, 8):
        row = layouts(ROW | {"num_gpus": ranks, "cp": ranks})
        (moved,) = arrangement(of, legal(of, row)).transfers.layers
        kept = (ranks - 1) / ranks
        assert moved.cp_trade.sent.sum() == pytest.approx(4 * SEQ * hidden / ranks * 2 * kept)
        assert moved.cp_hop.sent.sum() == 0


def test_shared_keys_are_fewer_bytes() -> None:
    """Llama 3.1 8B: 32 heads of queries and outputs, 8 of keys and of values, of 128 numbers."""
    of = traded()
    (moved,) = arrangement(of, legal(of, layouts(ROW))).transfers.layers
    assert moved.cp_trade.sent.sum() == pytest.approx(SEQ / 4 * 128 * (32 + 8 + 8 + 32) * 2 * 3 / 4)


@pytest.mark.parametrize(("recompute", "times"), [("none", 2), ("selective", 3), ("full", 3)])
def test_every_pass_trades_all_four(recompute: str, times: int) -> None:
    """Forward, backward, and once more where attention runs again; all of it shows."""
    of = traded(software__cp_overlap=1.0, software__selective_recompute="core_attention", software__host_layer=0.0)
    row = ROW | {"recompute": recompute}
    (moved,) = arrangement(of, layouts(row)).transfers.layers
    assert priced(of, row).time_cp_s[0] == pytest.approx(32 * times * moved.cp_trade.seconds[0])


def test_a_rank_computes_its_heads_on_the_whole_sequence() -> None:
    """As a tensor-parallel rank of as many; FLOP are a cp-th of all, and no partial results are merged."""
    of, alone = traded(), scenario()
    mine, whole = prepare(of, layouts(ROW)), prepare(alone, layouts(ROW | {"cp": 1, "tp": 4, "sequence_parallel": True}))
    for name in ("attention_forward", "attention_backward"):
        assert getattr(mine.alone.layers[0], name)[0] == pytest.approx(getattr(whole.alone.layers[0], name)[0], rel=1e-12)
    everything = prepare(alone, layouts(ROW | {"cp": 1}))
    assert mine.alone.layers[0].flops[0] == pytest.approx(everything.alone.layers[0].flops[0] / 4)


def test_attentions_output_is_kept_on_both_sides_of_its_exchange() -> None:
    row = layouts(ROW)
    (more,), (once,) = layer_activations(traded(), row), layer_activations(scenario(), row)
    overhead = scenario().software.memory.activation_overhead
    assert (more - once)[0] == pytest.approx(SEQ / 4 * 4096 * 2 * overhead)


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"num_gpus": 8, "cp": 4, "tp": 2, "recompute": "full"}, {}),
    ({"num_gpus": 8, "cp": 4, "recompute": "selective"}, {"software__cp_overlap": 0.5, "workload__packing": 0.5}),
    ({"num_gpus": 8, "cp": 2, "pp": 2, "schedule": "zero_bubble", "recompute": "none"}, {}),
    ({"num_gpus": 16, "cp": 2, "zero": 3, "recompute": "full"}, {"model__sliding_window": 1024}),
]


@pytest.mark.parametrize(("row", "changes"), CASES, ids=lambda each: "-".join(f"{k}{v}" for k, v in each.items()))
def test_backends_agree(row: dict[str, Any], changes: dict[str, Any]) -> None:
    table, of = layouts({"global_batch_size": 8} | row), BLOCKING | {"model__num_hidden_layers": 4} | changes
    closed = price(traded(**of), legal(traded(**of), table))
    assert closed.time_cp_s[0] > 0
    backends = ["hybrid", "full_astrasim_flattened", *(["full_astrasim_hierarchical"] if "tp" in row else [])]
    for backend in backends:
        run = price(traded(backend__name=backend, backend__network="ideal", **of), table)
        assert run.step_time_s[0] == pytest.approx(closed.step_time_s[0], rel=0.02), backend
        aware = price(traded(backend__name=backend, **of), table)
        assert aware.time_cp_s[0] == pytest.approx(closed.time_cp_s[0], rel=0.35), backend  # on links that all four share


def test_keys_are_copied_where_they_are_fewer_than_ranks() -> None:
    """Llama 3.1 8B over 16 ranks, 2 of its 32 heads each: 16 keys and values go out for the 8 that there are, and each rank gets one for
    its two queries; copies are kept. The examples of DeepSpeed's ulysses_sp.py: 32 heads, 8 keys, 32 ranks: one and one."""
    of, row = traded(software="deepspeed"), layouts(ROW | {"num_gpus": 16, "cp": 16, "zero": 3})
    (moved,) = arrangement(of, legal(of, row)).transfers.layers
    assert moved.cp_trade.sent.sum() == pytest.approx(SEQ / 16 * 128 * (32 + 16 + 16 + 32) * 2 * 15 / 16)
    alone = traded("llama3_1_8b", model__num_key_value_heads=16, software="deepspeed")
    mine, as_many = prepare(of, row), prepare(alone, row)  # what a rank's kernel sees: two queries, a key
    for name in ("attention_forward", "attention_backward"):
        assert getattr(mine.alone.layers[0], name)[0] == getattr(as_many.alone.layers[0], name)[0]
    (with_copies,), (many,) = layer_activations(of, row), layer_activations(alone, row)
    assert with_copies[0] == pytest.approx(many[0])
    rule, _ = broken_rules(layouts(ROW | {"num_gpus": 32, "cp": 32, "zero": 3}), of)
    assert rule[0] < 0


def test_megatron_copies_no_keys() -> None:
    rule, texts = broken_rules(layouts(ROW | {"num_gpus": 16, "cp": 16}, ROW), traded(software__enforce=True))
    assert texts[rule[0]].startswith("megatron_lm does not offer cp_kind ulysses over more ranks than key-value heads")
    assert rule[1] < 0


def test_heads_and_keys_must_go_round() -> None:
    """12 heads of queries, 4 keys: 6 ranks divide the queries, and neither divide the keys nor are a multiple of them."""
    odd = {"model__head_dim": 128, "model__num_attention_heads": 12, "model__num_key_value_heads": 4, "workload__seq_len": 8190}
    six, three = layouts(ROW | {"num_gpus": 6, "cp": 6}), layouts(ROW | {"num_gpus": 3, "cp": 3}, ROW)
    rule, texts = broken_rules(six, traded(**odd))
    assert texts[rule[0]] == "cp must divide a rank's key-value heads, or they must divide cp, under cp_kind=ulysses"
    rule, texts = broken_rules(three, traded())
    assert [texts[each] if each >= 0 else "" for each in rule] == ["seq_len must divide by cp", ""]
    rule, _ = broken_rules(layouts(ROW | {"num_gpus": 64, "cp": 64}), traded("deepseek_v3"))  # latent attention: keys of all 128 heads
    assert rule[0] < 0


@pytest.mark.parametrize(("software", "kinds"), [("megatron_lm", "ring ulysses"), ("torchtitan", "ring"), ("deepspeed", "ulysses")])
def test_frameworks_offer_their_own_ways(software: str, kinds: str) -> None:
    row = layouts(ROW | {"zero": 3 if software != "megatron_lm" else 1})
    for kind in ("ring", "ulysses"):
        rule, texts = broken_rules(row, scenario(software=software, parallel__cp_kind=kind, software__enforce=True))
        assert (rule[0] < 0) == (kind in kinds.split())
        if rule[0] >= 0:
            assert texts[rule[0]].startswith(f"{software} does not offer cp_kind {kind}")


def test_the_other_way_is_a_neighbour() -> None:
    of = trial(scenario(), legal(scenario(), layouts(ROW)))
    (other,) = [each for each in neighbours(of) if each.key == "parallel.cp_kind"]
    assert (other.before, other.value) == ("ring", "ulysses")
    assert other.step_time_s == pytest.approx(float(priced(traded(), ROW).step_time_s[0] - priced(scenario(), ROW).step_time_s[0]))


def test_without_context_parallelism_nothing_changes() -> None:
    rows = [ROW | {"num_gpus": 8, "cp": 1, "tp": tp, "global_batch_size": 8} for tp in (1, 8)]
    one, other = priced(traded(), *rows), priced(scenario(), *rows)
    table = layouts(*rows, ROW)
    found, ring = trust(traded(), table), trust(scenario(), table)
    assert np.array_equal(found.expected_error[:2], ring.expected_error[:2])
    assert [found.texts[each] for each in found.outside[2:]] == ["cp_kind (no run with ulysses was measured)"]
    assert np.array_equal(one.step_time_s, other.step_time_s)
    assert np.array_equal(one.peak_memory_bytes, other.peak_memory_bytes)
