"""Hybrid sharding: groups of GPUs that share one copy of what ZeRO shards, and all-reduces that keep the copies equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from trials import layouts, memory_terms, priced, scenario

from rapid_dse.events.machine import cluster_of
from rapid_dse.interconnect import closed_form
from rapid_dse.model.parameters import count
from rapid_dse.parallel.layouts import broken_rules
from rapid_dse.parallel.placement import place
from rapid_dse.parallel.span import Span
from rapid_dse.simulate.communication import effective_network
from rapid_dse.simulate.held_weights import embedding_parameters, layer_weights
from rapid_dse.sweep import identity

NOTHING_HIDES: dict[str, Any] = {f"software__{name}": 0 for name in ("dp_overlap", "parameter_gather_overlap")}


def test_memory_is_shared_by_the_shard_group_alone() -> None:
    """Llama 3.1 8B on 64 GPUs: 2, 4 and 12 bytes a parameter, each divided by the 8 GPUs of a group from the stage that shards it on."""
    of = scenario(model="llama3_1_8b", software="megatron_lm")
    parameters = count(of.model).total
    for zero in (1, 2, 3):
        row = {"num_gpus": 64, "zero": zero, "shard_group": 8, "global_batch_size": 64}
        terms = memory_terms(priced(of, row))
        for name, bytes_, from_stage in (("parameters", 2, 3), ("gradients", 4, 2), ("optimizer", 12, 1)):
            assert terms[name][0] == pytest.approx(bytes_ * parameters / (8 if zero >= from_stage else 1), rel=5e-4), (zero, name)


def test_experts_are_sharded_over_their_part_of_the_group() -> None:
    """Mixtral on 64 GPUs, ep 4, groups of 16: 4 ranks of a group hold the same experts, 16 the same dense weights."""
    of = scenario(model="mixtral_8x7b")
    counts = count(of.model)
    experts = counts.moe_layers * counts.num_experts * counts.expert / 4
    dense = counts.total - counts.moe_layers * counts.num_experts * counts.expert
    row = {"num_gpus": 64, "ep": 4, "zero": 1, "shard_group": 16}
    found = memory_terms(priced(of, row))["optimizer"][0]
    assert found == pytest.approx(12 * (dense / 16 + experts / 4), rel=5e-4)


@pytest.mark.parametrize("order", [("tp", "cp", "ep", "dp", "pp"), ("tp", "cp", "dp", "ep", "pp"), ("tp", "pp", "cp", "ep", "dp")])
def test_spans_are_those_of_the_ranks_counted_one_by_one(order: tuple[str, ...]) -> None:
    """Nodes of 8: for each group the members in the node of its first rank, by the places of the ranks themselves."""
    network = scenario().hw.network
    for tp, cp, dp, pp, shards in ((1, 1, 64, 1, 8), (2, 1, 32, 1, 8), (2, 2, 16, 2, 4), (4, 2, 8, 2, 8), (1, 4, 16, 2, 2)):
        degrees = {"tp": tp, "cp": cp, "dp": dp, "pp": pp, "ep": 1}
        halves = place(degrees | {"shards": shards}, order, network).halves
        assert halves is not None
        ranks = cluster_of(degrees, order, network).rank.transpose(0, 3, 1, 2).reshape(pp * tp, dp * cp)
        groups = np.sort(ranks, axis=1).reshape(pp * tp, -1, shards)
        for span, members in (
            (halves.shard, groups.reshape(-1, shards)),
            (halves.replica, groups.transpose(0, 2, 1).reshape(-1, dp * cp // shards)),
        ):
            beside = (members // 8 == members[:, :1] // 8).sum(axis=1)
            assert (beside == beside[0]).all()
            assert float(span.members[0][0]) == beside[0], (degrees, shards, order)
            assert float(np.ravel(span.size)[0]) == members.shape[1]


def hand_spans() -> tuple[Span, Span]:
    """Of 64 GPUs in nodes of 8: a node, and the GPUs at one place of each of 8 nodes."""
    one, eight = np.ones(1), np.full(1, 8.0)
    return Span((eight, one), (one, one)), Span((one, eight), (np.full(1, 8.0), one))


def test_gathers_stay_in_the_node_and_shards_are_summed_across_nodes() -> None:
    """Groups of a node, two micro-batches and nothing hidden. ZeRO 3: a layer is gathered twice and scattered once in the node, its eighth
    summed over the nodes, table and head gathered once and scattered once. ZeRO 1: gradients are scattered in the node and summed across
    once, new weights gathered in the node."""
    of = scenario(model="llama3_1_8b", software="torchtitan", **NOTHING_HIDES, software__gradient_bucket=1e12)
    network = effective_network(of)
    node, across = hand_spans()
    row = {"num_gpus": 64, "shard_group": 8, "global_batch_size": 128}
    rows = layouts(row)
    layer, table = float(layer_weights(of, rows)[0].dense[0]), float(embedding_parameters(of, rows)[0])

    def reduced(parameters: float) -> float:
        scattered = closed_form.reduce_scatter(4 * parameters, node, network)
        return float((scattered + closed_form.all_reduce(4 * parameters / 8, across, network))[0])

    def gathered(parameters: float) -> float:
        return float(closed_form.all_gather(2 * parameters, node, network)[0])

    whole = 32 * layer + 2 * table
    first = float(priced(of, row | {"zero": 1}).time_dp_s[0])
    assert first == pytest.approx(reduced(whole) + gathered(whole), rel=1e-9)
    each = 32 * (2 * gathered(layer) + reduced(layer)) + 2 * (gathered(table) + reduced(table))
    third = float(priced(of, row | {"zero": 3}).time_dp_s[0])
    assert third == pytest.approx(2 * each, rel=1e-9)


def test_what_is_no_shard_group_is_refused_and_all_of_them_is_null() -> None:
    of = scenario(model="mixtral_8x7b")

    def reason(**row: Any) -> str | None:
        rule, texts = broken_rules(layouts({"num_gpus": 64} | row), of)
        return texts[rule[0]] if rule[0] >= 0 else None

    assert reason(shard_group=24) == "shard_group must divide dp · cp"
    assert reason(shard_group=8, zero=0) == "shard_group needs zero 1, 2 or 3: zero 0 shards nothing"
    assert reason(shard_group=4, ep=8) == "etp · ep must divide tp · shard_group"
    assert reason(shard_group=8, ep=8) is None
    named, null = (identity.keys(of, layouts({"num_gpus": 64, "shard_group": group})) for group in (64, 0))
    assert (named == null).all()
    assert (identity.keys(of, layouts({"num_gpus": 64, "shard_group": 8})) != null).all()
